// The page as a whole: which view is shown, the way to the others, notes, a lost connection, an ended login.
import { get, goOn, is, me, on, signOut } from "./api.js";
import { setClock } from "./clock.js";
import { html, name, say, useLayoutEffect, useEvent, useRef, useState, word } from "./parts.js";
import { SignInPage } from "./signin.js";
import { Today } from "./today.js";
import { Calendar } from "./calendar.js";
import { Patients } from "./patients.js";
import { PatientPage } from "./patient.js";
import { ReportPage } from "./report.js";
import { Account, Staff, StaffMember } from "./staff.js";
import { Statistics } from "./statistics.js";
import { render } from "../preact/standalone.module.js";

const MENU = [["today", "Today"], ["calendar", "Calendar"], ["patients", "Patients"], ["staff", "Staff"], ["statistics", "Statistics"]];

// #/patients/3/report?on=… is the view `patients`, its record 3, its part `report`, and parameters.
function place() {
  const [path, parameters] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, id, part] = path.split("/");
  return { view: view || "today", id, part, path, parameters: Object.fromEntries(new URLSearchParams(parameters)) };
}

function View({ view, id, part, parameters }) {
  const mayReport = is("doctor", "admin");
  if (view === "patients" && part === "report" && mayReport) return html`<${ReportPage} patientId=${id} />`;
  if (view === "reports" && mayReport) return html`<${ReportPage} reportId=${id} />`;
  if (view === "patients") return id ? html`<${PatientPage} id=${id} />` : html`<${Patients} parameters=${parameters} />`;
  if (view === "calendar") return html`<${Calendar} parameters=${parameters} />`;
  if (view === "staff") return id ? html`<${StaffMember} id=${id} />` : html`<${Staff} />`;
  if (view === "account") return html`<${Account} />`;
  if (view === "statistics") return html`<${Statistics} />`;
  return html`<${Today} parameters=${parameters} />`;
}

function Notes() { // what was done, for some seconds
  const [text, set] = useState("");
  const timer = useRef();
  useLayoutEffect(() => on("say", (said) => { set(said); clearTimeout(timer.current); timer.current = setTimeout(() => set(""), 6000); }), []);
  return html`<div class="notes" role="status">${text && html`<p>${text}</p>`}</div>`;
}

function Connection() {
  const [away, set] = useState(false);
  useLayoutEffect(() => on("away", () => set(true)), []);
  useLayoutEffect(() => on("back", () => set(false)), []);
  return html`<div role="alert">${away && html`<p class="away">The server does not answer. What you typed stays here. Trying again…</p>`}</div>`;
}

function Over({ children }) { // a dialog that cannot be closed: one of the view may be open below
  const dialog = useRef();
  useLayoutEffect(() => { const shown = dialog.current; shown.showModal(); return () => shown.close(); }, []);
  useEvent("keydown", (event) => event.key === "Escape" && event.preventDefault(), []);
  return html`<dialog ref=${dialog} class="over" aria-label="Sign in"
    onCancel=${(event) => event.preventDefault()} onClose=${() => dialog.current?.showModal()}>${children}</dialog>`;
}

function Page({ before }) {
  const [here, setHere] = useState(place());
  const [user, setUser] = useState(me().id ? me() : null);
  const [why, setWhy] = useState(before);
  const main = useRef();
  useLayoutEffect(() => on("login", (login) => { setUser(login.user ?? (me().id ? me() : null)); setWhy(login.why ?? ""); }), []);
  useEvent("hashchange", () => { setHere(place()); scrollTo(0, 0); }, []);
  useLayoutEffect(() => { if (document.activeElement === document.body) main.current?.focus(); }, [here.path]);
  const leave = async () => {
    try {
      await signOut();
      setUser(null);
      history.replaceState(null, "", location.pathname);
      setHere(place());
    } catch (problem) { say(problem.message); }
  };
  if (!user) {
    const token = here.parameters.token ?? new URLSearchParams(location.search).get("token");
    return html`<${Connection} /><${SignInPage} why=${why} token=${token} />`;
  }
  const link = ([view, label]) => html`<a href=${`#/${view}`} aria-current=${here.view === view ? "page" : undefined}>${label}</a>`;
  return html`<div class="shell" inert=${Boolean(why)}>
      <a class="skip" href="#/" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the page</a>
      <header class="side"><p class="brand">Hosi</p><nav aria-label="Views">${MENU.map(link)}</nav><div class="whoami">
          <a href="#/account" aria-current=${here.view === "account" ? "page" : undefined}>${name(user)}<small>${word(user.role)}</small></a>
          <button onClick=${leave}>Sign out</button></div></header>
      <main ref=${main} tabindex="-1" key=${`${user.id} ${here.path}`}><${Connection} /><${View} ...${here} /></main><${Notes} /></div>
    ${why && html`<${Over}><${SignInPage} why=${why} lastEmail=${user.email} /><//>`}`;
}

const before = goOn();
const page = document.getElementById("page");
async function start() { // the clinic's clock is needed before anything is shown
  setClock(await get("/"));
  page.textContent = "";
  render(html`<${Page} before=${before} />`, page);
}
const wait = (problem) => { page.textContent = problem.message; setTimeout(() => start().catch(wait), 2000); };
start().catch(wait);
