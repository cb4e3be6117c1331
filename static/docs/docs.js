// The interactive page: Swagger UI, with a login that fills in the token and renews it. Tokens stay in memory.
"use strict";

const form = document.querySelector("#login");
const logout = document.querySelector("#logout");
const said = document.querySelector("#said");
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

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  plugins: [blankForms],
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  requestInterceptor: withFreshToken,
  responseInterceptor: keepTokens,
});

function keep(answer) {
  tokens = answer;
  ui.preauthorizeApiKey("access_token", tokens.access_token);
  ui.preauthorizeApiKey("refresh_token", tokens.refresh_token);
  form.hidden = true;
  logout.hidden = false;
  said.value = `You are ${tokens.user.first_name} ${tokens.user.last_name} (${tokens.user.role}).`;
}

function forget(why) {
  tokens = null;
  ui.authActions.logout(["access_token", "refresh_token"]);
  form.hidden = false;
  logout.hidden = true;
  said.value = why;
}

async function post(path, body, token) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const response = await fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
    return { ok: response.ok, ...(await response.json()) };
  } catch {
    return { ok: false, msg: "The server does not answer." };
  }
}

function expiresSoon(token) {
  const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  return claims.exp * 1000 < Date.now() + 10_000;
}

async function withFreshToken(request) {
  if (tokens && request.headers.Authorization === `Bearer ${tokens.access_token}` && expiresSoon(tokens.access_token)) {
    const answer = await post("/refresh", null, tokens.refresh_token);
    if (answer.ok) {
      keep(answer);
      request.headers.Authorization = `Bearer ${tokens.access_token}`;
    } else forget(answer.msg);
  }
  return request;
}

function keepTokens(response) { // of a login, refresh, logout or change of password that was sent from the page itself
  if (response.ok && response.body?.access_token && response.body.user) keep(response.body);
  if (tokens && response.ok && new URL(response.url).pathname === "/logout") forget(response.body.msg);
  return response;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = Object.fromEntries(new FormData(form));
  const answer = await post("/login", { email, password });
  if (answer.ok) {
    form.reset();
    keep(answer);
  } else said.value = answer.msg;
});

logout.addEventListener("click", async () => {
  const answer = await post("/logout", null, tokens.access_token);
  forget(answer.ok ? "You are logged out." : answer.msg);
});
