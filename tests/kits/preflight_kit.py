"""What a report of ``preflight`` holds."""


def rules(report):
    return {finding.rule for finding in report.findings}


def outcome(report, name):
    (found,) = [result for result in report.results if result.name == name]
    return found
