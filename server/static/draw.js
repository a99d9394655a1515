// What a page draws of what its stream tells, in passes. What arrives only appends to arrays; soon(f) has f drawn once in
// the next pass, however often it is asked for. Passes are work of frames and leave the page's thread free for most of the
// time: the next message waits behind what is drawn.

const GAP_MS = 100;         // from one pass to the next: people see no more
const GAP_MAX_MS = 400;
const SHARE = 4;            // times what a pass took, its painting included: from its beginning to the next
const SLICE_MS = 25;        // a longer pass goes on in the next frame, behind the messages that have come
const HIDDEN_MS = 1000;     // a page that nobody sees gets no frames; it is kept up to date all the same

let waiting = new Set(), round = new Set();   // for the next pass; what is left of this one
let planned = false, running = false, next = 0, spent = 0, began = 0;

const painted = new MessageChannel();
painted.port1.onmessage = () => {
  spent += performance.now() - began;
  if (round.size) return frame();
  next = performance.now() + Math.min(Math.max(GAP_MS - spent, (SHARE - 1) * spent), GAP_MAX_MS);
  planned = false;
  if (waiting.size) plan();
};

function slice() {
  began = performance.now();
  running = true;
  for (const f of round) { // and those that these ask for
    round.delete(f);
    try {
      f();
    } catch (e) {
      reportError(e);
    }
    if (performance.now() - began > SLICE_MS) break;
  }
  running = false;
  painted.port2.postMessage(0); // comes behind the frame
}

function frame() {
  let done = false;
  const once = () => {
    if (!done) slice();
    done = true;
  };
  requestAnimationFrame(once);
  setTimeout(once, HIDDEN_MS);
}

function pass() {
  [round, waiting] = [waiting, round];
  spent = 0;
  frame();
}

function plan() {
  planned = true;
  const wait = next - performance.now();
  if (wait > 0) setTimeout(pass, wait);
  else pass();
}

// f must not ask for itself.
export function soon(f) {
  (running ? round : waiting).add(f);
  if (!planned) plan();
}
