// A Worker for pages opened from a file, where browsers start none: its script runs in a hidden frame. The search needs it.
if (location.protocol === "file:") {
  const frames = new Map();
  addEventListener("message", (event) => {
    const worker = frames.get(event.source);
    if (worker) worker.dispatchEvent(new MessageEvent("message", { data: event.data }));
  });
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inner = frame.contentWindow;
      frames.set(this.inner, this);
      this.inner.importScripts = async (...urls) => {
        for (const each of urls) await this.load(new URL(each, url));
      };
      const outer = window;
      this.inner.postMessage = (data) => outer.dispatchEvent(new MessageEvent("message", { data, source: this.inner }));
      this.ready = this.load(url);
    }
    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.inner.document.createElement("script");
        Object.assign(script, { src: url, onload: resolve, onerror: reject });
        this.inner.document.documentElement.append(script);
      });
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })));
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker;
}
