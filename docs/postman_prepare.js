// Makes what the request needs and the environment lacks: an account, tokens, a patient, an appointment, a report.
// A request says what it needs by its variables, such as {{patient_id}}. So each request runs alone, and in any order.
const env = pm.environment;
const stamp = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
const person = (first_name) => ({ first_name, last_name: "Okafor", email: env.get("new_email"), password: env.get("password") });

function exchange(method, path, { as, json, form } = {}) {
  const type = form ? "multipart/form-data; boundary=part" : "application/json";
  const header = { ...(as && { Authorization: `Bearer ${env.get(as)}` }), ...((json || form) && { "Content-Type": type }) };
  const body = (json || form) && { mode: "raw", raw: form || JSON.stringify(json) };
  return new Promise((resolve, reject) => pm.sendRequest({ url: env.get("base_url") + path, method, header, body },
    (error, response) => (error ? reject(error) : resolve(response))));
}

async function send(method, path, options) {
  const response = await exchange(method, path, options);
  if (response.code >= 400) throw new Error(`${method} ${path} answered ${response.code}: ${response.text()}`);
  return response;
}

const made = async (path, options) => (await send("POST", path, options)).json();

// --- Tokens: of the account of the environment, and of the doctor of the story, whose variables begin with doctor_ ---

async function tokens(who) {
  if (env.get(who + "access_token") && env.get(who + "expires_at") > Date.now() + 10000) return;
  if (who) await need("doctor_email");
  const credentials = () => ({ json: { email: env.get(who + "email"), password: env.get("password") } });
  let answer = env.get(who + "refresh_token") && (await exchange("POST", "/refresh", { as: who + "refresh_token" }));
  if (!answer || answer.code !== 200) answer = await exchange("POST", "/login", credentials());
  if (answer.code === 401) {
    await (who ? signUpDoctor() : signUp());
    answer = await send("POST", "/login", credentials());
  }
  if (answer.code !== 200) throw new Error(`${env.get(who + "email")} cannot sign in: ${answer.text()}`);
  const { access_token, refresh_token, expires_in } = answer.json();
  env.set(who + "access_token", access_token);
  env.set(who + "refresh_token", refresh_token);
  env.set(who + "expires_at", Date.now() + expires_in * 1000);
}

async function signUp() { // as the first administrator where there is none yet
  const { sign_up } = (await send("GET", "/")).json();
  const role = sign_up === "first_administrator" ? "admin" : "doctor";
  await made("/signup", { json: { ...person("Tomás"), email: env.get("email"), role } });
}

async function signUpDoctor() {
  await need("access_token");
  await need("new_email");
  env.set("doctor_email", env.get("new_email"));
  env.set("doctor_id", (await made("/signup", { as: "access_token", json: person("Dora") })).id);
}

// --- Records ---

async function patient() {
  await need("access_token");
  const json = { first_name: "Amina", last_name: "Wanjiru", phone_number: "+254 712 345 678" };
  return (await made("/patients", { as: "access_token", json })).id;
}

async function colleague() {
  await need("access_token");
  env.set("new_email", `otto.${stamp()}@clinic.example`);
  return (await made("/signup", { as: "access_token", json: person("Otto") })).id;
}

async function appointment(as = "access_token") {
  await need(as);
  await need("patient_id");
  env.set("slot", slot());
  const json = { patient_id: env.get("patient_id"), appointment_datetime: env.get("slot") };
  return (await made("/appointment", { as, json })).id;
}

function span() { // five minutes after the years of which `slot` chooses: no appointment is in the way
  const start = new Date(slot()).getTime() + 18e5 * 160000 + 6e4;
  env.set("absence_end", new Date(start + 3e5).toISOString());
  return new Date(start).toISOString();
}

async function absence(user) {
  await need("access_token");
  await need(user);
  const json = { starts_at: span(), ends_at: env.get("absence_end") };
  return (await made(`/user/${env.get(user)}/absences`, { as: "access_token", json })).absence.id;
}

async function report(as = "access_token") {
  await need(as);
  await need("patient_id");
  const part = (about, content) => `--part\r\nContent-Disposition: form-data; ${about}\r\n\r\n${content}\r\n`;
  const form = part('name="patient_id"', env.get("patient_id")) + part('name="diagnosis"', "Malaria")
    + part('name="images"; filename="film.bmp"', film()) + "--part--\r\n";
  return made("/reports", { as, form });
}

function film() { // a grey BMP of 4 by 4 pixels: pm.sendRequest sends no files, but text, and each byte of this is ASCII
  const bytes = (number, length) => Array.from({ length }, (_, place) => String.fromCharCode((number >> (8 * place)) & 255));
  const head = [102, 0, 54, 40, 4, 4].flatMap((number) => bytes(number, 4));
  return ["BM", ...head, ...bytes(1, 2), ...bytes(24, 2), ...bytes(0, 4), ...bytes(48, 4), ...bytes(0, 16)].join("") + "@".repeat(48);
}

function slot() { // any half an hour of the next nine years: somebody may have booked tomorrow at ten already
  const halfHour = 18e5;
  return new Date((Math.ceil(Date.now() / halfHour) + 50 + Math.floor(Math.random() * 157000)) * halfHour).toISOString();
}

async function archived(name, path) { // a spare record, archived
  await need(`spare_${name}`);
  const id = env.get(`spare_${name}`);
  await send("DELETE", `${path}/${id}`, { as: "access_token" });
  return id;
}

async function link() { // the parts of a link to a local image
  await need("report_id");
  await need("access_token");
  const { images } = (await send("GET", `/reports/${env.get("report_id")}`, { as: "access_token" })).json();
  const [, key, query] = images[0].image_url.match(/([^/?]+)\?(.*)$/);
  for (const part of query.split("&")) env.set(...part.split("="));
  return key;
}

// Made once, and kept in the environment.
const KEPT = {
  access_token: () => tokens(""),
  refresh_token: () => tokens(""),
  doctor_access_token: () => tokens("doctor_"),
  doctor_refresh_token: () => tokens("doctor_"),
  doctor_email: signUpDoctor,
  doctor_id: signUpDoctor,
  patient_id: patient,
  user_id: colleague,
  appointment_id: () => appointment(),
  absence_id: () => absence("user_id"),
  report_id: async () => (await report()).id,
  doctor_appointment_id: () => appointment("doctor_access_token"),
  doctor_report_id: async () => (await report("doctor_access_token")).id,
  taken_slot: async () => {
    await appointment("doctor_access_token");
    return env.get("slot");
  },
  old_access_token: async () => {
    await need("doctor_access_token");
    await send("POST", "/logout", { as: "doctor_access_token" });
    env.unset("doctor_expires_at");
    return env.get("doctor_access_token");
  },
};

// Made anew for each request: what it uses up, or what must be of this moment.
const FRESH = {
  email: () => tokens(""), // the account exists
  new_email: () => `nia.${stamp()}@clinic.example`,
  slot,
  spare_patient_id: patient,
  spare_user_id: colleague,
  spare_appointment_id: () => appointment(),
  spare_report_id: async () => {
    const { id, images } = await report();
    env.set("spare_image_id", images[0].id);
    return id;
  },
  spare_image_id: () => need("spare_report_id"),
  spare_absence_id: () => absence("spare_user_id"),
  absence_start: span,
  absence_end: () => need("absence_start"),
  archived_patient_id: () => archived("patient_id", "/patient"),
  archived_user_id: () => archived("user_id", "/user"),
  archived_appointment_id: () => archived("appointment_id", "/appointment"),
  archived_report_id: () => archived("report_id", "/reports"),
  spare_access_token: async () => { // of an account that nobody else uses
    await need("spare_user_id");
    const json = { email: env.get("new_email"), password: env.get("password") };
    return (await made("/login", { json })).access_token;
  },
  session_id: async () => { // another login of the same account
    await need("access_token");
    const elsewhere = await made("/login", { json: { email: env.get("email"), password: env.get("password") } });
    env.set("spare_access_token", elsewhere.access_token);
    const logins = (await send("GET", "/me/sessions", { as: "spare_access_token" })).json();
    return logins.find((login) => login.current).id;
  },
  patient_etag: async () => {
    await need("patient_id");
    await need("access_token");
    return (await send("GET", `/patient/${env.get("patient_id")}`, { as: "access_token" })).headers.get("ETag");
  },
  stale_etag: async () => { // of the patient before somebody else's change
    await need("patient_etag");
    const json = { doctor_summary: `Changed by a colleague: ${stamp()}` };
    await send("PATCH", `/patient/${env.get("patient_id")}`, { as: "access_token", json });
    return env.get("patient_etag");
  },
  image_url: async () => {
    await need("doctor_report_id");
    await need("doctor_access_token");
    const found = await send("GET", `/reports/${env.get("doctor_report_id")}`, { as: "doctor_access_token" });
    return found.json().images[0].image_url;
  },
  key: link,
  reader: () => need("key"),
  expires: () => need("key"),
  signature: () => need("key"),
};

const done = new Set();

async function need(name) {
  const kept = env.get(name) && !name.endsWith("_token"); // the maker of a token looks whether it has expired
  if (done.has(name) || !(name in FRESH || (name in KEPT && !kept))) return;
  if (name === "old_access_token" && env.get(name)) return;
  done.add(name);
  const value = await (FRESH[name] || KEPT[name])();
  if (value !== undefined) env.set(name, value);
}

const waiting = setInterval(() => {}, 100); // the request is not sent before this has ended
(async () => {
  for (const [, name] of JSON.stringify(pm.request).matchAll(/\{\{(\w+)\}\}/g)) await need(name);
})()
  .catch((error) => pm.test(`What the request needs: ${error.message}`, () => { throw error; }))
  .finally(() => clearInterval(waiting));
