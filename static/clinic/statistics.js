// The figures of a span and three plots: appointments by time and state, missed ones by doctor, patients by state.
import { get } from "./api.js";
import { plusDays, shortDay, today } from "./clock.js";
import { STATES as PATIENTS } from "./patients.js";
import { Choice, Empty, Loaded, Word, html, useLoad, useState, word } from "./parts.js";

const APPOINTMENTS = ["completed", "checked_in", "confirmed", "scheduled", "pending", "no_show", "cancelled"]; // from the ground up
const SPANS = [["29 day", "30 days"], ["83 week", "12 weeks"], ["364 month", "12 months"]];
const percent = (share) => `${Math.round((share ?? 0) * 100)} %`;
const Figure = ({ label, children }) => html`<div class="card figure"><strong>${children}</strong><span>${label}</span></div>`;

// A table is the plot: what is drawn is read out as its numbers.
const Bars = ({ caption, rows, most, head }) => html`<table class="bars"><caption>${caption}</caption>
  <thead class="unseen"><tr>${head.map((one) => html`<th key=${one}>${one}</th>`)}</tr></thead>
  <tbody>${rows.map(({ key, label, value, text, state = "" }) => html`<tr key=${key}><th scope="row">${label}</th>
    <td><span class=${`bar ${state}`} style=${{ width: `${most ? (value / most) * 100 : 0}%` }}></span><span>${text}</span></td></tr>`)}</tbody></table>`;

function Periods({ periods, by }) {
  const most = Math.max(1, ...periods.map(({ appointments }) => appointments.total));
  const states = APPOINTMENTS.filter((state) => periods.some(({ appointments }) => appointments.by_status[state]));
  const step = Math.ceil(periods.length / 8);
  return html`<figure class="card wide"><figcaption>Appointments by ${by} and state</figcaption>
    <p class="legend">${states.map((state) => html`<span key=${state} class=${`state ${state}`}>${Word(word(state))}</span>`)}</p>
    <div class="plot" aria-hidden="true"><span class="most">${most}</span>
      ${periods.map(({ start, appointments }, index) => html`<div key=${start} class="stack" title=${`${shortDay(start)}: ${appointments.total}`}>
        <div class="pile">${states.map((state) => html`<i key=${state} class=${state} style=${{ height: `${((appointments.by_status[state] ?? 0) / most) * 100}%` }}></i>`)}</div>
        <small>${index % step === 0 && shortDay(start).replace(/^\w+,? /, "")}</small></div>`)}</div>
    <details><summary>As a table</summary><div class="scroll"><table class="rows"><thead><tr><th>From</th>${states.map((state) => html`<th key=${state}>${Word(word(state))}</th>`)}<th>Admissions</th><th>Discharges</th><th>Reports</th></tr></thead>
      <tbody>${periods.map((one) => html`<tr key=${one.start}><th scope="row">${shortDay(one.start)}</th>${states.map((state) => html`<td key=${state}>${one.appointments.by_status[state] ?? 0}</td>`)}
        <td>${one.admissions}</td><td>${one.discharges}</td><td>${one.reports}</td></tr>`)}</tbody></table></div></details></figure>`;
}

export function Statistics() {
  const [span, setSpan] = useState("83 week");
  const [days, by] = span.split(" ");
  const loaded = useLoad(() => get("/statistics", { from: plusDays(today(), -days), to: today(), by }), [span]);
  const all = loaded.data;
  const sum = (field) => all.periods.reduce((total, one) => total + one[field], 0);
  const missed = all?.appointments.by_status.no_show ?? 0;
  const over = missed + (all?.appointments.by_status.completed ?? 0);
  const doctors = (all?.doctors ?? []).filter(({ total }) => total).sort((a, b) => (b.no_show_rate ?? 0) - (a.no_show_rate ?? 0));
  const states = PATIENTS.filter((state) => all?.patients.by_status[state]);
  return html`<div class="head"><div><h1>Statistics</h1><p class="quiet">${all ? `${shortDay(all.from)} ${all.from.slice(0, 4)} – ${shortDay(all.to)} ${all.to.slice(0, 4)}` : " "}</p></div>
      <div class="tools"><${Choice} label="Span" class="slim" value=${span} options=${SPANS} onChange=${(event) => setSpan(event.target.value)} /></div></div>
    <${Loaded} of=${loaded}>${all && html`
      <div class="figures"><${Figure} label="appointments">${all.appointments.total.toLocaleString("en")}<//>
        <${Figure} label="did not come">${percent(over ? missed / over : 0)}<//><${Figure} label="admissions">${sum("admissions").toLocaleString("en")}<//>
        <${Figure} label="discharges">${sum("discharges").toLocaleString("en")}<//><${Figure} label="reports">${sum("reports").toLocaleString("en")}<//>
        <${Figure} label="patients in all">${all.patients.total.toLocaleString("en")}<//></div>
      ${all.appointments.total === 0 && html`<${Empty} title="No appointments in this span">Choose a longer one.<//>`}<div class="plots">
        <${Periods} periods=${all.periods} by=${by} />
        <figure class="card"><${Bars} caption="Did not come, by doctor" head=${["Doctor", "Share"]} most=${Math.max(0.05, ...doctors.map((one) => one.no_show_rate ?? 0))}
          rows=${doctors.map((one) => ({ key: one.user_id, label: one.doctor_name, value: one.no_show_rate ?? 0, state: "no_show", text: `${percent(one.no_show_rate)} of ${one.total}` }))} /></figure>
        <figure class="card"><${Bars} caption="Patients by state" head=${["State", "Patients"]} most=${Math.max(1, ...states.map((state) => all.patients.by_status[state]))}
          rows=${states.map((state) => ({ key: state, label: Word(word(state)), value: all.patients.by_status[state], text: all.patients.by_status[state].toLocaleString("en") }))} /></figure>
      </div>`}<//>`;
}
