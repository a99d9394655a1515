// Signing in with a token.
import {session, signIn, whoAmI} from "/static/api.js";
import {act, field, fill, h, problem} from "/static/dom.js";
import {title} from "/static/app.js";

export async function show(root, {query, go}) {
  title("Sign in");
  const to = query.get("to"), home = to && /^\/(?!\/)/.test(to) ? to : "/";
  if (session.me || await whoAmI().catch(() => null)) {
    go(home, {replace: true});
    return;
  }
  const token = h("input", {type: "password", autocomplete: "current-password", required: true, spellcheck: "false"});
  const wrong = h("div", {});
  const submit = h("button", {class: "primary"}, "Sign in");
  const form = h("form", {class: "card login", onsubmit: e => {
    e.preventDefault();
    act(submit, async () => {
      try {
        if (await signIn(token.value.trim())) return go(home, {replace: true});
        fill(wrong, problem({message: "The server does not know this token."}));
      } catch (err) {
        fill(wrong, problem(err.status === 401 || err.status === 403
          ? {title: "Not signed in", message: "The server does not know this token, or it has expired. Ask for a new one, or look at the server's token file."} : err));
      }
      token.select();
    });
  }}, h("h1", {}, "Sign in"), field("Token", token, "A token of yours, or the one in the server's token file."), submit, wrong);
  root.append(form);
  // make demo prints an address with the token behind "#": browsers do not send that part to any server.
  const given = location.hash.match(/^#token=(.+)$/);
  if (given) {
    token.value = decodeURIComponent(given[1]);
    history.replaceState(null, "", location.pathname + location.search);
    submit.focus();
  } else {
    token.focus();
  }
}
