// The dialog in which an appointment is booked or changed.
import { doctors, get, is, mayChange, me, patch, post } from "./api.js";
import { dayOf, hour, shortDay, time, today, now } from "./clock.js";
import { Choice, Dialog, Field, PatientLine, PatientPicker, Send, Tick, Word, Wrong, html, name, say, useLoad, useRef, useState, useSubmit, word } from "./parts.js";

export const STATES = ["pending", "scheduled", "confirmed", "checked_in", "completed", "cancelled", "no_show"];
const DURATIONS = [10, 15, 20, 30, 45, 60, 90, 120];

export function NewPatientFields({ errors, typed = "" }) {
  const [first, ...rest] = /\d/.test(typed) ? [""] : typed.trim().split(/\s+/);
  return html`<div class="row">
      <${Field} label="First name" name="first_name" maxlength="100" required defaultValue=${first} errors=${errors} autofocus />
      <${Field} label="Last name" name="last_name" maxlength="100" required defaultValue=${rest.join(" ")} errors=${errors} /></div><div class="row">
      <${Field} label="Phone" name="phone_number" type="tel" required defaultValue=${/\d/.test(typed) ? typed : ""} errors=${errors} />
      <${Field} label="Birth date" name="date_of_birth" type="date" max=${today()} errors=${errors} /></div>`;
}

function FreeTimes({ doctor, patient, day, minutes, onPick }) {
  const from = day > today() ? day : "";
  const free = useLoad(() => get("/slots", { user_id: doctor, patient_id: patient, from, minutes, limit: 8 }), [doctor, patient, from, minutes]);
  if (!free.last?.length) return null;
  return html`<div class="chips" role="group" aria-label="Free times">
    <span class="quiet">Free:</span>
    ${free.last.map(({ start }) => html`<button type="button" key=${start} onClick=${() => onPick(start)}>${shortDay(start)} ${hour(start)}</button>`)}</div>`;
}

// `appointment` is changed; without one, one is booked, beginning with `patient`, `doctor` (an id) and `at` where known.
export function Booking({ appointment, patient: whose, doctor: whom, at, onDone, onClose }) {
  const [patient, setPatient] = useState(appointment?.patient ?? whose);
  const [newcomer, setNewcomer] = useState(null); // what was typed into the search for them
  const begins = appointment?.appointment_datetime ?? at;
  const [when, setWhen] = useState({ day: begins ? dayOf(begins) : today(), time: begins ? hour(begins) : "" });
  const [minutes, setMinutes] = useState(appointment?.duration_minutes ?? 30);
  const [doctor, setDoctor] = useState(appointment?.user_id ?? whom ?? (is("doctor") ? me().id : ""));
  const all = useLoad(doctors, []);
  const version = useRef(appointment?.version);
  const made = useRef(); // the new patient, if the booking itself was refused
  const form = useSubmit(async (fields) => {
    const wish = {
      appointment_datetime: `${when.day}T${when.time}`, duration_minutes: Number(minutes), reason: fields.reason, note: fields.note,
      user_id: Number(doctor || fields.user_id), status: fields.status,
      ...(fields.off_hours && { off_hours: true }), ...(fields.overbooked && { overbooked: true }),
    };
    if (appointment) {
      const old = { ...appointment, appointment_datetime: begins.slice(0, 16) };
      const changed = Object.fromEntries(Object.entries(wish).filter(([field, value]) => value !== undefined && value !== old[field]));
      try {
        await patch(`/appointment/${appointment.id}`, changed, version.current);
      } catch (problem) {
        const theirs = problem.status === 412 && problem.body.current;
        if (theirs) {
          version.current = theirs.version;
          problem.message = `Somebody else has changed it meanwhile: ${time(theirs.appointment_datetime)}, ${theirs.doctor_name}, ${word(theirs.status)}.`
            + " Save once more to change what you changed here all the same.";
        }
        throw problem;
      }
      say("The appointment is changed.");
    } else {
      if (newcomer !== null && !made.current) {
        const { first_name, last_name, phone_number, date_of_birth } = fields;
        made.current = (await post("/patients", { first_name, last_name, phone_number, date_of_birth, status: "outpatient" })).body;
        setPatient(made.current);
        setNewcomer(null);
      }
      await post("/appointment", { ...wish, status: undefined, patient_id: (made.current ?? patient).id });
      say(`Booked: ${name(made.current ?? patient)}, ${time(wish.appointment_datetime)}.`);
    }
    return onDone;
  });
  const locked = appointment && !mayChange(appointment);
  const people = new Map((is("doctor") ? [me()] : all.data ?? []).map((one) => [one.id, name(one)]));
  if (people.size && appointment) people.set(appointment.user_id, appointment.doctor_name); // who may be another's, or inactive
  const refusal = form.error?.code;
  const past = `${when.day}T${when.time || "23:59"}` < now();
  return html`<${Dialog} title=${appointment ? "Appointment" : "Book an appointment"} onClose=${onClose}>
    <form onSubmit=${form.submit}>${patient && html`<p class="picked"><span><${PatientLine} patient=${patient} /></span>
        ${appointment ? html`<a href=${`#/patients/${patient.id}`} onClick=${onClose}>Open</a>`
        : !whose && html`<button type="button" onClick=${() => { setPatient(null); made.current = null; }}>Another</button>`}</p>`}
      ${!patient && newcomer === null && html`<${PatientPicker} onPick=${setPatient} onNew=${setNewcomer} />`}
      ${!patient && newcomer !== null && html`<${NewPatientFields} errors=${form.errors} typed=${newcomer} />
        <button type="button" class="link" onClick=${() => setNewcomer(null)}>Search instead</button>`}<fieldset disabled=${locked}>
        ${people.size || !appointment ? html`<${Choice} label="Doctor" name="user_id" required value=${doctor} errors=${form.errors}
          onChange=${(event) => setDoctor(Number(event.target.value))}
          options=${[...(doctor ? [] : [["", "Choose…"]]), ...people]} />` : null}
        <div class="row"><${Field} label="Day" name="day" type="date" required value=${when.day} errors=${form.errors}
            onInput=${(event) => setWhen({ ...when, day: event.target.value })} />
          <${Field} label="Time" name="appointment_datetime" type="time" required value=${when.time} errors=${form.errors}
            onInput=${(event) => setWhen({ ...when, time: event.target.value })} />
          <${Choice} label="Minutes" name="duration_minutes" value=${minutes} errors=${form.errors}
            onChange=${(event) => setMinutes(event.target.value)}
            options=${[...new Set([...DURATIONS, Number(minutes)])].sort((a, b) => a - b).map((one) => [one, one])} /></div>
        ${!locked && doctor && html`<${FreeTimes} key=${`${doctor} ${patient?.id} ${minutes}`} doctor=${doctor} patient=${patient?.id} day=${when.day} minutes=${minutes}
          onPick=${(start) => setWhen({ day: dayOf(start), time: hour(start) })} />`}
        <${Field} label="Reason" name="reason" as="textarea" rows="2" maxlength="2000" defaultValue=${appointment?.reason ?? ""} errors=${form.errors} />
        <${Field} label="Note" name="note" as="textarea" rows="2" maxlength="2000" defaultValue=${appointment?.note ?? ""} errors=${form.errors} />
        ${appointment && html`<${Choice} label="State" name="status" options=${STATES.map((one) => [one, Word(word(one))])}
          value=${appointment.status} errors=${form.errors} />`}
        ${refusal === "off_hours" && html`<${Tick} name="off_hours" label="Book it outside of the doctor’s hours all the same" />`}
        ${refusal === "slot_taken" && is("admin") && html`<${Tick} name="overbooked" label="Overbook: both at the same time" />`}</fieldset>
      <${Wrong} error=${form.error} />${past && !appointment && when.time && html`<p class="quiet">This time has passed.</p>`}
      ${locked ? html`<p class="quiet">Only ${appointment.doctor_name} and the desk can change it.</p>`
      : html`<p class="actions"><${Send} of=${form} disabled=${form.busy || (!patient && newcomer === null)}>${appointment ? "Save" : "Book"}<//></p>`}
    </form><//>`;
}
