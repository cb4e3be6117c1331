// Uses one of the modules of docs/spa.md as an app would, and prints what it saw as JSON. tests/test_spa.py runs it.
// Arguments: the module, "axios" or "fetch", the address of the server, an expired access token, email, password.
const [module, flavour, address, expired, email, password] = process.argv.slice(2);

const kept = new Map();
globalThis.sessionStorage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => void kept.set(name, String(value)),
  removeItem: (name) => void kept.delete(name),
};

const client = await import(module);

/** The two modules behind the same four functions. */
const flavours = {
  axios: () => ({
    list: async (path, params) => seen(await client.api.get(path, { params })),
    get: async (path) => seen(await client.api.get(path)),
    patch: async (path, body, etag) => seen(await client.api.patch(path, body, { headers: { "If-Match": etag } })),
    status: (error) => error.response?.status,
  }),
  fetch: () => ({
    list: (path, params) => client.call(path + client.query(params)),
    get: (path) => client.call(path),
    patch: (path, body, etag) => client.call(path, client.json("PATCH", body, { "If-Match": etag })),
    status: (error) => error.status,
  }),
};
const seen = (answer) => ({
  body: answer.data,
  etag: answer.headers.etag,
  next: client.nextPage(answer),
  total: Number(answer.headers["x-total-count"]),
});
const { list, get, patch, status } = flavours[flavour]();
const refused = (promise) => promise.then(() => "taken", status);

const told = { ended: 0 };
client.onLoginEnded(() => { told.ended += 1; });

told.wrongPassword = await refused(client.login(email, "not the password"));
told.user = (await client.login(email, password)).email;

const page = await list("/patients", { status: ["admitted", "critical"], limit: 2, total: true });
const more = await get(page.next);
told.total = page.total;
told.pages = [page.body.length, more.body.length];

const address1 = `/patient/${page.body[0].id}`;
const read = await get(address1);
told.diagnosis = (await patch(address1, { diagnosis: "Malaria" }, read.etag)).body.diagnosis;
told.tooLate = await refused(patch(address1, { diagnosis: "Influenza" }, read.etag));

sessionStorage.setItem("access", expired);
told.atOnce = (await Promise.all([get("/me"), get("/me")])).map((answer) => answer.body.email);
told.endedEarly = told.ended;

const token = sessionStorage.getItem("access");
await fetch(`${address}/logout`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
told.afterTheEnd = await Promise.all([refused(get("/me")), refused(get("/me"))]);
told.left = kept.size;

await client.login(email, password);
await client.logout();
told.leftAfterLogout = kept.size;
console.log(JSON.stringify(told));
