// The patients, found as one types, and the form of a new one.
import { call, post, query } from "./api.js";
import { age, date } from "./clock.js";
import { NewPatientFields } from "./booking.js";
import { Choice, Dialog, Empty, Field, Loaded, More, Send, State, Wrong, count, go, html, name, say, useLayoutEffect, usePages, useSettled, useState, useSubmit } from "./parts.js";

export const STATES = ["outpatient", "admitted", "ongoing", "critical", "healed", "discharged", "transferred", "deceased"];
export const SEXES = [["", "Not said"], ["female", "Female"], ["male", "Male"], ["other", "Other"], ["unknown", "Unknown"]];
const PAGE = 50;

export function NewPatient({ typed, onClose }) {
  const form = useSubmit(async (fields) => {
    const { body } = await post("/patients", fields);
    say(`${name(body)} is registered, MRN ${body.mrn}.`);
    return () => go(`/patients/${body.id}`);
  });
  return html`<${Dialog} title="New patient" onClose=${onClose}><form onSubmit=${form.submit}>
    <${NewPatientFields} errors=${form.errors} typed=${typed} /><div class="row"><${Choice} label="Sex" name="sex" options=${SEXES} errors=${form.errors} />
      <${Choice} label="State" name="status" options=${STATES} value="outpatient" errors=${form.errors} /></div>
    <${Wrong} error=${form.error} /><p class="actions"><${Send} of=${form}>Register<//></p></form><//>`;
}

export function Patients({ parameters }) {
  const [typed, setTyped] = useState(parameters.q ?? "");
  const [status, setStatus] = useState(parameters.status ?? "");
  const [adding, setAdding] = useState(false);
  const q = useSettled(typed.trim());
  const search = query({ q, status });
  const list = usePages(() => call("GET", `/patients${query({ q, status, limit: PAGE, total: true, sort: q ? "" : "last_name" })}`), [search]);
  useLayoutEffect(() => history.replaceState(null, "", `#/patients${search}`), [search]); // so that Back finds it again
  const { data: page, rows } = list;
  return html`<div class="head"><div><h1>Patients</h1><p class="quiet" role="status">${page ? `${page.estimated ? "About " : ""}${count(page.total, "patient")}${q && ` found by “${q}”`}` : " "}</p></div>
      <div class="tools"><button class="main" onClick=${() => setAdding(true)}>New patient…</button></div></div><div class="row search">
      <${Field} label="Search" type="search" class="wide" placeholder="Name, phone, MRN or birth date" value=${typed} maxlength="100" autofocus
        onInput=${(event) => setTyped(event.target.value)}
        onKeyDown=${(event) => event.key === "Enter" && rows[0] && q === typed.trim() && page && !list.loading && go(`/patients/${rows[0].id}`)} />
      <${Choice} label="State" value=${status} options=${[["", "Any"], ...STATES]} onChange=${(event) => setStatus(event.target.value)} />
    </div><${Loaded} of=${{ ...list, data: list.last }}>
      ${rows.length ? html`<table class="rows"><thead><tr><th>Name</th><th>MRN</th><th>Birth date</th><th>Phone</th><th>State</th></tr></thead>
        <tbody>${rows.map((one) => html`<tr key=${one.id}><td><a href=${`#/patients/${one.id}`}><strong>${one.last_name}</strong>, ${one.first_name}</a></td>
          <td class="number">${one.mrn}</td><td>${one.date_of_birth ? html`${date(one.date_of_birth)} <small>${age(one.date_of_birth)}</small>` : "–"}</td>
          <td class="number">${one.phone_number}</td><td><${State} of=${one.status} /></td></tr>`)}</tbody></table>`
      : html`<${Empty} title=${q || status ? "Nobody is found" : "No patients yet"}>
          ${q || status ? "A part of the name, of the phone number or of the MRN is enough." : "Register the first one with “New patient”."}<//>`}
      <${More} of=${list}>Show more<//><//>${adding && html`<${NewPatient} typed=${typed} onClose=${() => setAdding(false)} />`}`;
}
