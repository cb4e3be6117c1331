// What the views share: loading, forms, dialogs, the search for a patient, words.
import { html, useLayoutEffect, useMemo, useRef, useState } from "../preact/standalone.module.js";
import { AWAY, Problem, call, get, on, tell } from "./api.js";
import { date } from "./clock.js";

// Effects run before the browser goes on, never after its next frame: on a busy machine somebody has clicked and typed by
// then, and a focus that moves late takes the text into another field.
export { html, useLayoutEffect, useMemo, useRef, useState };

const WORDS = { checked_in: "arrived", completed: "done", no_show: "did not come", admin: "administrator" };
export const word = (text) => (WORDS[text] ?? text ?? "–").replaceAll("_", " ");
export const Word = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const State = ({ of }) => html`<span class=${`state ${of}`}>${Word(word(of))}</span>`;
export const name = (person) => `${person.first_name} ${person.last_name}`;
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
export const say = (text) => tell("say", text); // a short note at the foot
export const go = (hash) => { location.hash = hash; };

// Loads when `deps` change, after a lost connection, and by reload(). `data` is what was loaded for these `deps`: it stays
// while it is loaded again and if that fails, but nobody takes one day or doctor for another. `last` is of whatever `deps`.
export function useLoad(load, deps) {
  const [state, set] = useState({});
  const turn = useRef(0);
  const of = JSON.stringify(deps);
  const reload = async () => {
    const own = ++turn.current;
    set((old) => ({ ...old, loading: true }));
    const answer = await load().then((data) => ({ data }), (error) => ({ error }));
    if (answer.error && !(answer.error instanceof Problem)) throw answer.error;
    if (own === turn.current) set((old) => ({ ...(answer.error && old.of === of && old), ...answer, of, loading: false }));
  };
  const latest = useRef();
  latest.current = reload;
  useLayoutEffect(() => { reload(); return () => { turn.current++; }; }, deps);
  useLayoutEffect(() => on("back", () => latest.current()), []);
  const known = state.of === of ? state : { loading: true };
  const then = turn.current;
  return { data: known.data, error: known.error, loading: known.loading, last: state.data, // reload() is for what is shown by then
    reload: () => latest.current(), set: (data) => then === turn.current && set({ data, of }) };
}

// The rows of a collection whose first page `load` gets, and `more`, which gets the next page after them.
export function usePages(load, deps) {
  const first = useLoad(load, deps);
  const more = useSubmit(async () => {
    const { body, next } = await call("GET", first.data.next);
    first.set({ ...first.data, body: [...first.data.body, ...body], next });
  });
  return { ...first, rows: first.last?.body ?? [], next: first.data?.next, more };
}
export const More = ({ of, children }) => html`<${Wrong} error=${of.more.error} />
  ${of.next && html`<p class="actions"><button disabled=${of.more.busy} onClick=${of.more.submit}>${children}</button></p>`}`;

// Runs `work(fields, form)` at a submit. `error` is the server's sentence, `errors` has those of the fields. What is being
// sent cannot be changed meanwhile. `work` may return what to do next: it is not done if another view is shown by then.
export function useSubmit(work) {
  const [state, set] = useState({ errors: {} });
  const gone = useRef(false);
  useLayoutEffect(() => () => { gone.current = true; }, []);
  useLayoutEffect(() => on("back", () => set((old) => (old.error?.code === "signed_out" ? { errors: {} } : old))), []);
  const submit = async (event, part = event?.target?.closest?.("form, dialog, .card")) => {
    event?.preventDefault?.();
    if (state.busy) return;
    set({ busy: true, errors: {} });
    const focused = document.activeElement;
    if (part) part.inert = true;
    const end = (then) => {
      if (part) part.inert = false;
      set(then);
      Promise.resolve().then(() => { // the button that was pressed is enabled again by then
        if (part && /^(BODY|DIALOG|MAIN)$/.test(document.activeElement?.tagName)) focused?.focus();
      });
    };
    try {
      const next = await work(event?.target?.elements ? Object.fromEntries(new FormData(event.target)) : event, event?.target);
      end({ errors: {} });
      if (typeof next === "function" && !gone.current) next();
    } catch (error) {
      if (!(error instanceof Problem)) { end({ errors: {} }); throw error; }
      end({ error, errors: error.errors });
      if (gone.current) say(`Not done: ${error.message}`);
    }
  };
  return { ...state, submit, forget: () => set({ errors: {} }) };
}

const MISSING = "This server does not have this yet.";
export const Wrong = ({ error }) => error && html`
  <p class="wrong" role="alert">${error.status === 404 && /address/.test(error.message) ? MISSING : error.message}</p>`;
export const Loaded = ({ of, children }) => html`
  ${of.error && !(of.error.message === AWAY && of.data) && html`<${Wrong} error=${of.error} />`}
  ${of.data ? children : of.loading && html`<p class="quiet" role="status">One moment…</p>`}`;
export const Empty = ({ title, children }) => html`<div class="empty"><strong>${title}</strong><p>${children}</p></div>`;

let ids = 0;
export function Field({ label, name, errors = {}, as = "input", hint, children, class: kind = "", ...rest }) {
  const id = useMemo(() => `f${++ids}`, []);
  const wrong = errors[name]?.join(" ");
  const input = useRef();
  useLayoutEffect(() => { if (rest.autofocus) input.current.focus(); }, []);
  const told = [hint && `${id}h`, wrong && `${id}w`].filter(Boolean).join(" ") || undefined;
  return html`<div class=${`field ${kind}`}>
    <label for=${id}>${label}</label>
    <${as} ref=${input} id=${id} name=${name} aria-invalid=${wrong ? "true" : undefined} aria-describedby=${told} ...${rest}>${children}<//>
    ${hint && html`<small id=${`${id}h`}>${hint}</small>`}${wrong && html`<small id=${`${id}w`} class="fault">${wrong}</small>`}</div>`;
}
export const Choice = ({ options, value, ...rest }) => html`<${Field} as="select" ...${rest}>
  ${options.map((one) => {
    const [key, label] = Array.isArray(one) ? one : [one, Word(word(one))];
    return html`<option key=${key} value=${key} selected=${String(key) === String(value ?? "")}>${label}</option>`;
  })}<//>`;
export const Tick = ({ label, ...rest }) => html`<label class="tick"><input type="checkbox" ...${rest} /> ${label}</label>`;
export const Send = ({ of, children, ...rest }) => html`
  <button class="main" disabled=${of.busy} ...${rest}>${of.busy ? "One moment…" : children}</button>`;

export function Dialog({ title, onClose, wide, children }) {
  const dialog = useRef();
  useLayoutEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close(); // the focus goes back to where it was
  }, []);
  const id = useMemo(() => `d${++ids}`, []);
  const sending = () => dialog.current.inert || dialog.current.querySelector("[inert]"); // the answer is still to be read
  const close = () => sending() || onClose(); // a second gesture to go back closes it whatever this says: see onClose
  useEvent("keydown", (event) => event.key === "Escape" && sending() && event.preventDefault());
  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby=${id}
      onCancel=${(event) => { event.preventDefault(); close(); }}
      onClose=${() => dialog.current && (sending() ? dialog.current.showModal() : onClose())}>
    <header><h2 id=${id}>${title}</h2><button type="button" class="plain" aria-label="Close" onClick=${close}>✕</button></header>${children}</dialog>`;
}

export const PatientLine = ({ patient }) => html`<strong>${name(patient)}</strong>
  <small>${patient.mrn} · ${patient.date_of_birth ? `born ${date(patient.date_of_birth)}` : "birth date unknown"} · ${patient.phone_number}</small>`;

// The search for a patient as one types: arrows choose, Enter picks.
export function PatientPicker({ onPick, onNew }) {
  const [typed, setTyped] = useState("");
  const [chosen, choose] = useState(null); // by the arrows: a patient, not a line, as the lines may change
  const text = useSettled(typed.trim());
  const found = useLoad(() => (text ? get("/patients", { q: text, limit: 8 }) : Promise.resolve([])), [text]);
  const patients = text ? found.last ?? [] : [];
  const current = text === typed.trim() && found.data && !found.loading; // else they were found by an earlier text: Enter takes none of them
  const at = chosen === null ? 0 : patients.findIndex(({ id }) => id === chosen);
  const keys = (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && patients.length) choose(patients[(at + move + patients.length) % patients.length].id);
    else if (event.key === "Enter" && current && patients[at]) onPick(patients[at]);
    if (move || event.key === "Enter") event.preventDefault();
  };
  return html`<div class="picker">
    <${Field} label="Patient" role="combobox" aria-expanded=${patients.length > 0} aria-controls="found" aria-autocomplete="list"
      aria-activedescendant=${patients[at] && `found${at}`} autocomplete="off" placeholder="Name, phone, MRN or birth date"
      autofocus value=${typed} onInput=${(event) => { setTyped(event.target.value); choose(null); }} onKeyDown=${keys} />
    <ul id="found" role="listbox" aria-label="Patients found">
      ${patients.map((patient, index) => html`<li key=${patient.id} id=${`found${index}`} role="option" aria-selected=${index === at}
        onClick=${() => onPick(patient)}><${PatientLine} patient=${patient} /></li>`)}</ul>
    <${Wrong} error=${found.error} />
    ${text && found.data && !found.loading && !patients.length && html`<p class="quiet" role="status">Nobody is found by “${text}”.</p>`}
    ${onNew && html`<button type="button" onClick=${() => onNew(typed)}>New patient…</button>`}</div>`;
}

// Listens to an event of the window.
export const useEvent = (name, listener, deps) =>
  useLayoutEffect(() => { addEventListener(name, listener); return () => removeEventListener(name, listener); }, deps);

export function useSettled(value, wait = 180) { // milliseconds without a change
  const [settled, set] = useState(value);
  useLayoutEffect(() => { const timer = setTimeout(() => set(value), wait); return () => clearTimeout(timer); }, [value]);
  return settled;
}
