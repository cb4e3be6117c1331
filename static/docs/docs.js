// The interactive page: Swagger UI, with a login that fills in the token and renews it. The login survives a reload and
// ends with the tab: the tokens are in sessionStorage, and only scripts of this server run here.
"use strict";

const header = document.querySelector("header");
const form = document.querySelector("#login");
const opener = document.querySelector("#open");
const logout = document.querySelector("#logout");
const said = document.querySelector("#said");
const KEPT = "hosi.login"; // in sessionStorage: the answer to the login, and when its access token expires
let tokens = null;

// A form begins with what its fields have as examples; Swagger UI would invent "string" for the rest, and send it.
const blankForms = () => ({
  afterLoad() {
    const sample = this.fn.getSampleSchema;
    this.fn.getSampleSchema = (schema, mediaType, ...more) => {
      const field = schema?.toJS ? schema.toJS() : schema;
      if (mediaType !== false || field.examples) return sample(schema, mediaType, ...more);
      return field.type === "array" ? [] : "";
    };
  },
  wrapComponents: { // "Send empty value" is ticked by who wants it
    ParameterIncludeEmpty: (Original, { React }) => (props) => React.createElement(Original, { ...props, isIncludedOptions: {} }),
  },
});

// One logs in on the bar. Swagger UI's own ways, which ask for a token, are left out.
const oneLogin = () => ({
  wrapComponents: { authorizeBtn: () => () => null, authorizeOperationBtn: () => () => null },
});

// The page asks the server that it came from, also where `servers` names another address, PUBLIC_URL.
const ownServer = () => ({
  statePlugins: {
    spec: { wrapActions: { updateSpec: (update) => (text) => update(text && JSON.stringify({ ...JSON.parse(text), servers: [{ url: "/" }] })) } },
  },
});

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  plugins: [blankForms, oneLogin, ownServer],
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  requestInterceptor: withFreshToken,
  responseInterceptor: keepTokens,
  onComplete: goOn,
});

function keep(answer) {
  show({ ...answer, expires_at: Date.now() + answer.expires_in * 1000 });
}

function show(login) {
  tokens = login;
  sessionStorage.setItem(KEPT, JSON.stringify(tokens));
  ui.preauthorizeApiKey("access_token", tokens.access_token);
  ui.preauthorizeApiKey("refresh_token", tokens.refresh_token);
  signedIn(true);
  said.value = `You are ${tokens.user.first_name} ${tokens.user.last_name} (${tokens.user.role}).`;
}

function forget(why) {
  tokens = null;
  sessionStorage.removeItem(KEPT);
  ui.authActions.logout(["access_token", "refresh_token"]);
  signedIn(false);
  said.value = why;
}

function signedIn(yes) {
  form.hidden = opener.hidden = yes;
  logout.hidden = !yes;
  open(false);
}

function open(yes) { // the form, on a narrow screen
  header.classList.toggle("opened", yes);
  opener.setAttribute("aria-expanded", yes);
}

async function send(method, path, body, token) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    return { ok: response.ok, status: response.status, ...(await response.json()) };
  } catch {
    return { ok: false, msg: "The server does not answer." };
  }
}

let renewal = null;
function renew() { // requests that are sent together wait for the same refresh
  renewal ??= send("POST", "/refresh", null, tokens.refresh_token)
    .then((answer) => {
      if (answer.ok) keep(answer);
      else if (answer.status === 401) forget(answer.msg); // a bad line does not end the login
    })
    .finally(() => { renewal = null; });
  return renewal;
}

async function goOn() { // after a reload, if the login has not ended meanwhile
  const kept = sessionStorage.getItem(KEPT);
  if (!kept) return;
  show(JSON.parse(kept));
  if (tokens.expires_at < Date.now() + 10_000) return renew();
  const me = await send("GET", "/me", null, tokens.access_token);
  if (me.status === 401) forget(me.msg);
}

async function withFreshToken(request) {
  if (tokens && tokens.expires_at < Date.now() + 10_000 && request.headers.Authorization === `Bearer ${tokens.access_token}`) {
    await renew();
    if (tokens) request.headers.Authorization = `Bearer ${tokens.access_token}`;
  }
  return request;
}

function keepTokens(response) { // of a login, refresh, logout or change of password that was sent from the page itself
  if (response.ok && response.body?.access_token && response.body.user) keep(response.body);
  const path = new URL(response.url).pathname;
  if (tokens && response.ok && path === "/logout") forget(response.body.msg);
  if (tokens && response.status === 401 && !["/login", "/me/password"].includes(path)) renew(); // tells an ended login
  return response;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = Object.fromEntries(new FormData(form));
  const answer = await send("POST", "/login", { email, password });
  if (answer.ok) {
    form.reset();
    keep(answer);
  } else said.value = answer.msg;
});

logout.addEventListener("click", async () => {
  const answer = await send("POST", "/logout", null, tokens.access_token);
  forget(answer.ok ? "You are logged out." : answer.msg);
});

opener.addEventListener("click", () => {
  open(!header.classList.contains("opened"));
  if (header.classList.contains("opened")) form.elements.email.focus();
});
