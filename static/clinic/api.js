// Speaks to the server: tokens and their refresh, ETags, errors. All tabs share one login, which is in localStorage: a
// refresh token is good once, so two copies of it would end each other. Only scripts of this server run on the page.
const KEPT = "hosi.login";
const UNUSED = 12 * 3600e3; // milliseconds: a login that was not used for so long is forgotten
const PUBLIC = ["/", "/login", "/signup", "/password/forgot", "/password/reset"];

export const AWAY = "The server does not answer. What you typed is still here.";
const ENDED = "Please sign in again.";

export class Problem extends Error {
  constructor(status, body) { super(body.msg); Object.assign(this, { status, code: body.code, errors: body.errors ?? {}, body }); }
}

// "login" (the user, or why there is none), "away", "back": what views listen for. Returns how to stop listening.
const heard = new EventTarget();
export function on(name, listener) {
  const told = (event) => listener(event.detail);
  heard.addEventListener(name, told);
  return () => heard.removeEventListener(name, told);
}
export const tell = (name, detail) => heard.dispatchEvent(new CustomEvent(name, { detail }));

let mine = null; // the user of this tab: another tab may sign in as somebody else
export const me = () => mine ?? {};
export const is = (...roles) => roles.includes(mine?.role);
export const mayChange = (record) => is("admin") || record.user_id === mine?.id || (is("receptionist") && !record.images);
const kept = () => JSON.parse(localStorage.getItem(KEPT));

function keep({ user, access_token, refresh_token, expires_in }) {
  const now = Date.now();
  const login = { user, access_token, refresh_token, expires_at: now + expires_in * 1000, used_at: now };
  localStorage.setItem(KEPT, JSON.stringify(login));
  if (!mine || mine.id === user.id) mine = user;
}

function end(why) { localStorage.removeItem(KEPT); tell("login", { why }); }

addEventListener("storage", ({ key, oldValue, newValue }) => {
  if (key !== KEPT || !mine) return;
  const user = JSON.parse(newValue)?.user;
  if (!user) tell("login", { why: "You signed out in another tab." });
  else if (user.id !== mine.id) tell("login", { why: `${user.first_name} ${user.last_name} signed in in another tab. Reload this page to go on so.` });
  else {
    tell("login", { user: (mine = user) });
    if (!oldValue) tell("back"); // signed in again there: here, too, all is loaded again
  }
});

// Sends a request. Resolves to its status, body and headers whatever the status; rejects where there is no answer.
function send(method, path, { json, form, etag, key, token, onprogress } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell the progress of an upload
    request.open(method, path);
    const headers = { Accept: "application/json", "If-Match": etag, "Idempotency-Key": key };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (json) headers["Content-Type"] = "application/json";
    for (const [name, value] of Object.entries(headers)) if (value) request.setRequestHeader(name, value);
    if (onprogress) request.upload.onprogress = ({ loaded, total }) => onprogress(loaded, total);
    if (!form) request.timeout = 30_000;
    const away = () => { tell("away"); reject(new Problem(0, { msg: AWAY, code: "away" })); };
    request.onerror = request.ontimeout = request.onabort = away;
    request.onload = () => {
      let body;
      try { body = JSON.parse(request.responseText); } catch { // a proxy whose server is away says so in HTML
        return request.status >= 500 ? away() : reject(new Problem(request.status, { msg: "The answer cannot be read." }));
      }
      resolve({ status: request.status, body, header: (name) => request.getResponseHeader(name) });
    };
    request.send(form ?? (json ? JSON.stringify(json) : null));
  });
}

// One refresh at a time, among all tabs where the browser has locks. Elsewhere the server gives a pair twice within
// ten seconds.
let turn = Promise.resolve();
const inTurn = (work) => (navigator.locks ? navigator.locks.request(KEPT, work) : (turn = turn.then(work, work)));

const renew = (used) => inTurn(async () => { // returns whether there is another access token than `used`
  const login = kept();
  if (login?.access_token !== used) return Boolean(login);
  const answer = await send("POST", "/refresh", { token: login.refresh_token });
  if (answer.status === 200) keep(answer.body);
  else if (answer.status === 401) end(answer.body.msg); // anything else does not end the login
  return answer.status === 200;
});

// Returns {body, etag, next, total}. Throws a Problem with the server's sentence, `status`, `code`, and `errors` by field.
export async function call(method, path, options = {}) {
  for (let again = false; ; again = true) {
    const login = kept();
    if (mine && login?.user.id !== mine.id && !PUBLIC.includes(path)) {
      tell("login", { why: ENDED });
      throw new Problem(401, { msg: ENDED, code: "signed_out" });
    }
    const token = login?.access_token;
    if (options.form && token && !again && login.expires_at < Date.now() + 60_000) { // not in the middle of an upload
      await renew(token);
      continue;
    }
    const { status, body, header } = await send(method, path, { ...options, token });
    if (status === 401 && token && !again && body.code !== "wrong_credentials" && (await renew(token))) continue;
    if (status >= 400) throw new Problem(status, body);
    const next = header("Link")?.match(/<([^>]+)>; rel="next"/)?.[1].replace(/^https?:\/\/[^/]+/, "");
    return { body, etag: header("ETag"), next, total: Number(header("X-Total-Count") ?? NaN), estimated: !!header("X-Total-Count-Estimated") };
  }
}
export const get = async (path, fields) => (await call("GET", path + query(fields))).body;
export const query = (fields = {}) => {
  const given = Object.entries(fields).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const text = new URLSearchParams(given.filter(([, value]) => value !== "" && value != null)).toString();
  return text && `?${text}`;
};

// One key for the same content until it is taken: a POST that is repeated after a lost answer makes nothing twice.
const keys = new Map();
export async function post(path, json, options = {}) {
  const content = path + JSON.stringify(json ?? options.content);
  if (!keys.has(content)) keys.set(content, [...crypto.getRandomValues(new Uint8Array(16))].join("-"));
  const answer = await call("POST", path, { json, key: keys.get(content), ...options });
  keys.delete(content);
  return answer;
}
export const patch = (path, json, version) => call("PATCH", path, { json, etag: version && `"${version}"` });

export async function signIn(email, password) {
  const { body } = await call("POST", "/login", { json: { email, password } });
  keep(body);
  if (mine.id !== body.user.id) return location.reload(); // what is on the screen is another's
  tell("login", { user: mine });
  return tell("back");
}

export async function signOut(everywhere = false) {
  await call("POST", `/logout${everywhere ? "?everywhere=true" : ""}`);
  mine = null;
  end("You are signed out.");
}

export async function changePassword(current_password, new_password) {
  keep((await call("POST", "/me/password", { json: { current_password, new_password } })).body);
}

export function goOn() { // with the login of an earlier page or tab; returns why there is none, if one ended
  const login = kept();
  if (!login) return "";
  if (login.used_at + UNUSED < Date.now()) {
    send("POST", "/logout", { token: login.access_token }).catch(() => {});
    localStorage.removeItem(KEPT);
    return "You were signed out: this browser was not used for twelve hours.";
  }
  mine = login.user;
  localStorage.setItem(KEPT, JSON.stringify({ ...login, used_at: Date.now() }));
  return "";
}

let waiting = false;
on("away", async () => { // asks until the server is back
  if (waiting) return;
  waiting = true;
  for (let up = false; !up;) {
    await new Promise((then) => setTimeout(then, 1500));
    up = await fetch("/healthz", { cache: "no-store" }).then((answer) => answer.ok, () => false);
  }
  waiting = false;
  tell("back");
});

// The active doctors, asked for once. Views that choose one await it.
let directory;
export const doctors = () => (directory ??= get("/users", { is_active: true, sort: "last_name" }).then(
  (users) => users.filter(({ role }) => role === "doctor" || (role === "admin" && users.every((one) => one.role !== "doctor"))),
  (problem) => { directory = undefined; throw problem; }));
export const forgetDoctors = () => { directory = undefined; };
