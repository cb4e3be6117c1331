// A patient: who they are, their course, possible duplicates. Two who edit at once see both versions.
import { call, get, is, patch, post } from "./api.js";
import { age, date, dayOf, hour, time, today } from "./clock.js";
import { Booking } from "./booking.js";
import { SEXES, STATES } from "./patients.js";
import { Choice, Dialog, Empty, Field, Loaded, More, Send, State, Word, Wrong, count, go, html, name, say, useEvent, useLoad, usePages, useState, useSubmit, word } from "./parts.js";

const LABELS = {
  first_name: "First name", last_name: "Last name", phone_number: "Phone", date_of_birth: "Birth date", sex: "Sex", status: "State",
  admitted_at: "Admitted", discharged_at: "Discharged", diagnosis: "Diagnosis", doctor_summary: "Summary",
};
const TIMES = ["admitted_at", "discharged_at"];
const asTyped = (patient, field) => (TIMES.includes(field) ? patient[field]?.slice(0, 16) : patient[field]) ?? "";
const asShown = (field, value) => (TIMES.includes(field) ? time(value) : field === "date_of_birth" ? date(value) : word(value || "–"));

// What was typed beside what somebody else saved meanwhile; one chooses field by field.
function Both({ typed, theirs, form }) {
  const differing = Object.keys(typed).filter((field) => typed[field] !== asTyped(theirs, field));
  const keep = (fields, part) => form.submit({ chosen: Object.fromEntries(differing.filter((one) => fields[one] === "mine").map((one) => [one, typed[one]])), theirs }, part);
  return html`<form class="both" onSubmit=${(event) => { event.preventDefault(); keep(Object.fromEntries(new FormData(event.target)), event.target); }}>
    <p class="wrong" role="alert">Somebody else has changed this patient meanwhile. Nothing of yours is lost: choose what to keep.</p>
    <table class="rows"><thead><tr><th>Field</th><th>Yours</th><th>As it is now</th></tr></thead><tbody>
      ${differing.map((field) => html`<tr key=${field}><th scope="row">${LABELS[field]}</th>
        ${[["mine", typed[field]], ["theirs", asTyped(theirs, field)]].map(([whose, value]) => html`<td key=${whose}><label class="tick">
          <input type="radio" name=${field} value=${whose} defaultChecked=${whose === "mine"} /> <span>${asShown(field, value)}</span></label></td>`)}
      </tr>`)}</tbody></table>${!differing.length && html`<p>Both say the same.</p>`}<p class="actions"><${Send} of=${form}>Save what is chosen<//></p></form>`;
}

function Edit({ patient: given, onDone, onClose }) {
  const [patient] = useState(given); // as it was when the edit began: it may be loaded again meanwhile
  const [conflict, setConflict] = useState(null);
  const fields = Object.keys(LABELS).filter((field) => is("doctor", "admin") || !["diagnosis", "doctor_summary"].includes(field));
  const save = useSubmit(async (typed) => {
    const base = typed.theirs ?? patient;
    const wish = typed.chosen ?? typed;
    const changed = Object.fromEntries(Object.entries(wish).filter(([field, value]) => value !== asTyped(base, field)));
    try {
      if (Object.keys(changed).length) await patch(`/patient/${patient.id}`, changed, base.version);
      say(Object.keys(changed).length ? `${name(patient)} is saved.` : "Nothing has changed.");
      return onDone;
    } catch (problem) {
      if (problem.status !== 412) throw problem;
      const mine = typed.chosen ?? Object.fromEntries(Object.entries(changed));
      return setConflict({ typed: mine, theirs: problem.body.current ?? (await get(`/patient/${patient.id}`)) });
    }
  });
  const field = (one, rest = {}) => html`<${Field} label=${LABELS[one]} name=${one} defaultValue=${asTyped(patient, one)} errors=${save.errors} ...${rest} />`;
  return html`<${Dialog} title=${`Edit ${name(patient)}`} wide onClose=${onClose}>
    ${conflict ? html`<${Both} ...${conflict} form=${save} /><${Wrong} error=${save.error} />` : html`<form onSubmit=${save.submit}>
      <div class="row">${field("first_name", { required: true, maxlength: 100 })}${field("last_name", { required: true, maxlength: 100 })}</div>
      <div class="row">${field("phone_number", { type: "tel", required: true })}${field("date_of_birth", { type: "date", max: today() })}</div>
      <div class="row"><${Choice} label="Sex" name="sex" options=${SEXES} value=${patient.sex ?? ""} errors=${save.errors} />
        <${Choice} label="State" name="status" options=${STATES} value=${patient.status} errors=${save.errors} /></div>
      <div class="row">${TIMES.map((one) => field(one, { type: "datetime-local" }))}</div>
      ${fields.includes("diagnosis") && html`${field("diagnosis", { as: "textarea", rows: 2 })}${field("doctor_summary", { as: "textarea", rows: 5 })}`}
      <${Wrong} error=${save.error} /><p class="actions"><${Send} of=${save}>Save<//></p></form>`}<//>`;
}

export function Lightbox({ images, at, onClose }) {
  const [index, setIndex] = useState(at);
  const [broken, setBroken] = useState(false);
  const move = (by) => { setBroken(false); setIndex((index) => (index + by + images.length) % images.length); };
  const image = images[index];
  useEvent("keydown", ({ key }) => (key === "ArrowRight" ? move(1) : key === "ArrowLeft" && move(-1)));
  return html`<${Dialog} title=${`Picture ${index + 1} of ${images.length}`} wide onClose=${onClose}>
    ${broken ? html`<p class="wrong" role="alert">This picture cannot be shown. Its link may have expired: close, and open the patient again.</p>`
      : html`<img class="large" key=${image.id} src=${image.image_url} alt=${`Picture ${index + 1}, ${image.width} by ${image.height} pixels`} onError=${() => setBroken(true)} />`}
    ${images.length > 1 && html`<p class="actions spread"><button onClick=${() => move(-1)}>‹ Before</button><button onClick=${() => move(1)}>Next ›</button></p>`}
  <//>`;
}

export const Thumbnails = ({ images, onOpen, children }) => html`<ul class="pictures">${images.map((image, index) => html`<li key=${image.id}>
  <button class="plain" onClick=${() => onOpen(index)} aria-label=${`Open picture ${index + 1} of ${images.length}`}>
    <img src=${image.thumbnail_url} alt="" loading="lazy" /></button>${children?.(image)}</li>`)}</ul>`;

function Entry({ entry, onPicture, onBooking }) {
  const { kind, at } = entry;
  const to_come = dayOf(at) > today();
  return html`<li class=${`entry ${kind} ${to_come ? "coming" : ""}`}>
    <span class="when">${date(dayOf(at))}<small>${hour(at)}</small></span><span class="what">
      <span><strong>${kind === "report" ? "Report" : to_come ? "Appointment to come" : "Appointment"}</strong> <small>${entry.doctor_name}</small></span>
      ${kind === "report" ? html`<p class="prose">${entry.diagnosis || "Without a diagnosis"}</p>
        ${entry.images.length > 0 && html`<${Thumbnails} images=${entry.images} onOpen=${(index) => onPicture(entry.images, index)} />`}`
      : html`<small>${entry.reason || "No reason given"}</small>`}</span>
    ${kind === "report" ? html`<span class="do"><a class="button" href=${`#/reports/${entry.id}`}>Open</a></span>`
      : html`<${State} of=${entry.status} /><span class="do"><button onClick=${() => onBooking(entry)}>Details</button></span>`}</li>`;
}

function Duplicates({ patient, found, onMerged }) {
  const [into, setInto] = useState(null);
  const merge = useSubmit(async () => {
    const { body } = await post(`/patient/${patient.id}/merge`, { into: into.id });
    say(`Merged: ${count(body.moved.appointments, "appointment")} and ${count(body.moved.reports, "report")} moved to ${name(into)}.`);
    return () => go(`/patients/${into.id}`);
  });
  return html`<section class="card note"><h2>Possibly the same person</h2>
    <ul class="plainlist">${found.map(({ patient: other, reasons }) => html`<li key=${other.id}>
      <a href=${`#/patients/${other.id}`}>${name(other)}</a> <small>${other.mrn} · ${reasons.join(", ")}</small>
      ${is("admin") && html` <button onClick=${() => { merge.forget(); setInto(other); }}>Merge…</button>`}</li>`)}</ul>
    ${into && html`<${Dialog} title="Merge two patients" onClose=${() => setInto(null)}>
      <p>The appointments and reports of <strong>${name(patient)}</strong> (${patient.mrn}) move to <strong>${name(into)}</strong> (${into.mrn}).
        ${name(patient)} is archived, and can be restored.</p><${Wrong} error=${merge.error} />
      <p class="actions"><${Send} of=${merge} onClick=${merge.submit}>Merge into ${name(into)}<//></p><//>`}</section>`;
}

export function PatientPage({ id }) {
  const [open, setOpen] = useState({});
  const patient = useLoad(() => get(`/patient/${id}`), [id]);
  const course = usePages(() => call("GET", `/patient/${id}/timeline?limit=30`), [id]);
  const same = useLoad(() => get(`/patient/${id}/duplicates`), [id]);
  const entries = course.rows;
  const archive = useSubmit(async () => {
    await call("DELETE", `/patient/${id}`, { etag: `"${patient.data.version}"` });
    say(`${name(patient.data)} is archived.`);
    return () => go("/patients");
  });
  const close = () => setOpen({});
  const done = () => { close(); patient.reload(); course.reload(); };
  const one = patient.data;
  const merged = patient.error?.body.merged_into;
  if (merged) return html`<h1>Merged</h1><p>This patient was merged into <a href=${`#/patients/${merged}`}>another</a>.</p>`;
  const fact = (label, value) => html`<div><dt>${label}</dt><dd>${value || "–"}</dd></div>`;
  return html`<${Loaded} of=${patient}>${one && html`
    <div class="head"><div><h1>${name(one)} <${State} of=${one.status} /></h1>
        <p class="quiet">MRN ${one.mrn}${one.date_of_birth && ` · ${age(one.date_of_birth)}, born ${date(one.date_of_birth)}`}</p></div><div class="tools">
        <button class="main" onClick=${() => setOpen({ booking: { patient: one } })} disabled=${one.status === "deceased"}>Book…</button>
        ${is("doctor", "admin") && html`<a class="button" href=${`#/patients/${id}/report`}>New report</a>`}
        <button onClick=${() => setOpen({ edit: true })}>Edit</button>
        ${is("admin") && html`<button onClick=${() => setOpen({ archive: true })}>Archive…</button>`}</div></div>
    ${same.data?.length > 0 && html`<${Duplicates} patient=${one} found=${same.data} />`}<div class="columns">
      <section class="card facts"><h2>Details</h2><dl>${fact("Phone", one.phone_number)}${fact("Sex", one.sex && Word(one.sex))}
        ${fact("Admitted", one.admitted_at && time(one.admitted_at))}${fact("Discharged", one.discharged_at && time(one.discharged_at))}
        ${is("doctor", "admin") && html`${fact("Diagnosis", one.diagnosis)}${fact("Summary", html`<span class="prose">${one.doctor_summary || "–"}</span>`)}`}
        ${one.merged?.length > 0 && fact("Formerly also", one.merged.map((other) => other.mrn).join(", "))}</dl></section>
      <section><h2>Course</h2><${Loaded} of=${course}>${entries.length ? html`<ol class="list course">${entries.map((entry) => html`
            <${Entry} key=${`${entry.kind}${entry.id}`} entry=${entry} onPicture=${(images, at) => setOpen({ images, at })}
              onBooking=${(appointment) => setOpen({ booking: { appointment } })} />`)}</ol>`
          : html`<${Empty} title="Nothing yet">Appointments${is("doctor", "admin") && " and reports"} will be listed here.<//>`}<//>
        <${More} of=${course}>Show earlier ones<//></section></div>${open.edit && html`<${Edit} patient=${one} onClose=${close} onDone=${done} />`}
    ${open.booking && html`<${Booking} ...${open.booking} onClose=${close} onDone=${done} />`}
    ${open.images && html`<${Lightbox} ...${open} onClose=${close} />`}${open.archive && html`<${Dialog} title="Archive the patient" onClose=${close}>
      <p>${name(one)} is no longer found, with their appointments and reports. An administrator can restore them.</p><${Wrong} error=${archive.error} />
      <p class="actions"><${Send} of=${archive} onClick=${archive.submit}>Archive<//></p><//>`}`}<//>`;
}
