// The day of a doctor, or of all: who is next, who has arrived, and the gaps that are free.
import { get, is, mayChange, me, patch } from "./api.js";
import { age, dayOf, ends, hour, minutesOf, niceDay, now, plusDays, today } from "./clock.js";
import { Booking } from "./booking.js";
import { Choice, Empty, Loaded, State, Wrong, count, go, html, name, useLoad, useRef, useState, useSubmit } from "./parts.js";

const TO_COME = ["pending", "scheduled", "confirmed"];
const HOLDING = [...TO_COME, "checked_in"];

// Free slots that touch are one gap.
export const gaps = (slots) => slots.reduce((found, { user_id, doctor_name, start, end }) => {
  const last = found.findLast((gap) => gap.user_id === user_id);
  if (last?.to === start) last.to = end;
  else found.push({ user_id, doctor_name, from: start, to: end });
  return found;
}, []);

function Row({ appointment: one, onOpen, onDone, withDoctor, next }) {
  const move = useSubmit(async (status) => {
    try {
      await patch(`/appointment/${one.id}`, { status }, one.version);
    } catch (problem) {
      if (problem.status === 412) await onDone(); // shows what somebody else has changed
      throw problem;
    }
    await onDone();
  });
  const begun = dayOf(one.appointment_datetime) <= today();
  const step = (status, label, kind = "") => html`<button class=${kind} disabled=${move.busy} onClick=${(event) => event.detail < 2 && move.submit(status)}
    aria-label=${`${label}: ${one.patient_name}`}>${label}</button>`;
  return html`<li class=${`entry ${HOLDING.includes(one.status) ? "" : "over"} ${next ? "next" : ""}`}>
    <span class="when">${hour(one.appointment_datetime)}<small>${hour(ends(one))}</small></span><span class="what">
      <span><a href=${`#/patients/${one.patient_id}`}><strong>${one.patient_name}</strong></a>
        <small>${one.patient.date_of_birth ? ` ${age(one.patient.date_of_birth)} · ` : " "}${one.patient.phone_number}</small></span>
      <small>${one.reason || "No reason given"}${withDoctor && ` · ${one.doctor_name}`}</small><${Wrong} error=${move.error} /></span>
    <${State} of=${one.status} /><span class="do">${mayChange(one) && html`
      ${TO_COME.includes(one.status) && step("checked_in", "Arrived", "main")}${one.status === "checked_in" && begun && step("completed", "Done", "main")}
      ${HOLDING.includes(one.status) && begun && step("no_show", "Did not come")}
      ${["checked_in", "completed", "no_show"].includes(one.status) && step("scheduled", "Undo")}`}
      <button onClick=${() => onOpen(one)} aria-label=${`Details: ${one.patient_name}, ${hour(one.appointment_datetime)}`}>Details</button></span></li>`;
}

const Gap = ({ gap, withDoctor, onBook }) => html`<li class="entry gap">
  <span class="when">${hour(gap.from)}<small>${hour(gap.to)}</small></span>
  <span class="what"><small>Free for ${minutesOf(gap.to) - minutesOf(gap.from)} minutes${withDoctor && ` · ${gap.doctor_name}`}</small></span>
  <span class="do"><button onClick=${() => onBook(gap)} aria-label=${`Book at ${hour(gap.from)} with ${gap.doctor_name}`}>Book</button></span></li>`;

export function Today({ parameters }) {
  const day = parameters.on ?? today();
  const [whose, setWhose] = useState(is("doctor") ? String(me().id) : "");
  const [open, setOpen] = useState(null);
  const list = useLoad(() => get("/appointment", { on: day, sort: "appointment_datetime" }), [day]);
  const free = useLoad(() => (day < today() ? Promise.resolve([]) :
    get("/slots", { user_id: whose, from: day, to: day, minutes: 15, limit: 500 })), [day, whose]);
  const all = list.data ?? [];
  const shown = all.filter((one) => !whose || String(one.user_id) === whose);
  const people = useRef(new Map(is("doctor") ? [[me().id, name(me())]] : [])).current; // of any day: the one who is chosen stays
  all.forEach((one) => people.set(one.user_id, one.doctor_name));
  const reload = () => Promise.all([list.reload(), free.reload()]);
  const waiting = shown.filter((one) => one.status === "checked_in");
  const next = waiting[0] ?? (day === today() ? shown.find((one) => TO_COME.includes(one.status) && ends(one) > now()) : null);
  const entries = [
    ...shown.map((one) => ({ at: one.appointment_datetime, one })),
    ...gaps(whose ? free.data ?? [] : []).map((gap) => ({ at: gap.from, gap })),
  ].sort((a, b) => (a.at < b.at ? -1 : 1));
  const done = shown.filter((one) => one.status === "completed").length;
  const open_ = shown.filter((one) => TO_COME.includes(one.status)).length;
  const to = (there) => go(`/today?on=${there}`);
  return html`<div class="head"><div><h1>${day === today() ? "Today" : niceDay(day)}</h1>
        <p class="quiet">${day === today() && `${niceDay(day)} · `}${list.data ? `${count(shown.length, "appointment")}, ${open_} to come, ${waiting.length} waiting, ${done} done` : " "}</p></div>
      <div class="tools"><${Choice} label="Doctor" class="slim" value=${whose} onChange=${(event) => setWhose(event.target.value)}
          options=${[["", "All doctors"], ...people]} />
        <span class="group"><button onClick=${() => to(plusDays(day, -1))} aria-label="The day before">‹</button>
          <button onClick=${() => to(today())} disabled=${day === today()}>Today</button>
          <button onClick=${() => to(plusDays(day, 1))} aria-label="The next day">›</button></span>
        <button class="main" onClick=${() => setOpen({ at: day > today() ? day : "" })}>Book…</button></div></div>
    ${next && html`<p class="upnext"><small>${waiting[0] ? "Waiting" : "Next"}</small>
      <a href=${`#/patients/${next.patient_id}`}>${next.patient_name}</a> <span>${hour(next.appointment_datetime)} · ${next.doctor_name}${next.reason && ` · ${next.reason}`}</span></p>`}
    <${Loaded} of=${list}>${entries.length ? html`<ul class="list day">${entries.map(({ one, gap }) => (one
        ? html`<${Row} key=${one.id} appointment=${one} next=${one === next} withDoctor=${!whose} onDone=${reload}
            onOpen=${(appointment) => setOpen({ appointment })} />`
        : html`<${Gap} key=${`${gap.user_id}${gap.from}`} gap=${gap} withDoctor=${!whose}
            onBook=${() => setOpen({ doctor: gap.user_id, at: gap.from })} />`))}</ul>`
      : html`<${Empty} title="Nobody is booked">An empty day${whose && " for this doctor"}. “Book…” fills it.<//>`}<//>
    ${!whose && free.data?.length > 0 && html`<section><h2>Free now</h2><div class="chips">
      ${[...gaps(free.data).reduce((first, gap) => (first.has(gap.user_id) ? first : first.set(gap.user_id, gap)), new Map()).values()].map((gap) => html`
        <button key=${gap.user_id} onClick=${() => setOpen({ doctor: gap.user_id, at: gap.from })}>${gap.doctor_name}: ${hour(gap.from)}–${hour(gap.to)}</button>`)}
    </div></section>`}${open && html`<${Booking} ...${open} onClose=${() => setOpen(null)}
      onDone=${() => { setOpen(null); reload(); }} />`}`;
}
