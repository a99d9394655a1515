// The SharedWorker: one Hub for all tabs of this browser.
import {Hub} from "/static/hub.js";

const hub = new Hub();

addEventListener("connect", event => {
  const port = event.ports[0], send = message => port.postMessage(message);
  port.onmessage = e => hub.hello(send, e.data);
});
