"""A PostgreSQL server of Debian's package, on a free port of this machine."""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile

PASSWORD = "s3cret/word"


def binaries():
    """Return the folder of the server's programs; ``None``: it is not installed."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return folders[-1] if folders and os.path.exists(f"{folders[-1]}/initdb") else None


class Server:
    """Server with the database ``study`` of the user ``tuner``; ``url`` is its URL."""

    def __init__(self, folder):
        self._folder = folder
        self._owner = (
            {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        )  # root may not run it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://tuner:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{self.port}/study"

    def call(self, name, *arguments, **options):
        command = [f"{binaries()}/{name}", *arguments]
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        subprocess.run(
            command, check=True, cwd="/", env=environment, stdout=subprocess.DEVNULL, **self._owner, **options
        )

    def make(self):
        password = os.path.join(self._folder, "password")
        with open(password, "w") as file:
            file.write(PASSWORD)
        for path in (self._folder, password) if self._owner else ():
            shutil.chown(path, "postgres", "postgres")
        files = ["-D", f"{self._folder}/data", "-U", "tuner", f"--pwfile={password}"]
        self.call("initdb", *files, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8")
        self.start()
        self.call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tuner", "study")

    def start(self):
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        files = ["-D", f"{self._folder}/data", "-l", f"{self._folder}/log"]
        self.call("pg_ctl", *files, "-w", "-o", options, "start")

    def stop(self):
        self.call("pg_ctl", "-D", f"{self._folder}/data", "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def server():
    """Yield a server that runs."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        running = Server(folder)
        running.make()
        try:
            yield running
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                running.stop()
