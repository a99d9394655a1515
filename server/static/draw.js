// One drawing pass for all that a page draws of what its stream tells. What arrives only appends to arrays; soon(f) has f drawn
// once in the next pass, however often it is asked for. A pass is one frame's work, and passes leave the page's thread
// free for most of the time: the next message waits behind what is drawn.

const GAP_MS = 100;         // from one pass to the next: people see no more
const GAP_MAX_MS = 1000;
const SHARE = 4;            // times what a pass took, its painting included: from its beginning to the next
const HIDDEN_MS = 1000;     // a page that nobody sees gets no frames; it is kept up to date all the same

const waiting = new Set();
let planned = false, next = 0, began = 0;

const painted = new MessageChannel();
painted.port1.onmessage = () => {
  next = began + Math.min(Math.max(GAP_MS, SHARE * (performance.now() - began)), GAP_MAX_MS);
  planned = false;
  if (waiting.size) plan();
};

function pass() {
  began = performance.now();
  for (const f of waiting) { // and those that these ask for
    waiting.delete(f);
    try {
      f();
    } catch (e) {
      reportError(e);
    }
  }
  painted.port2.postMessage(0); // comes behind the frame
}

function frame() {
  let done = false;
  const once = () => {
    if (!done) pass();
    done = true;
  };
  requestAnimationFrame(once);
  setTimeout(once, HIDDEN_MS);
}

function plan() {
  planned = true;
  const wait = next - performance.now();
  if (wait > 0) setTimeout(frame, wait);
  else frame();
}

// f must not ask for itself.
export function soon(f) {
  waiting.add(f);
  if (!planned) plan();
}
