// A report: several pictures dropped, pasted or chosen, each with its preview, its progress and what is wrong with it.
import { call, get, mayChange, post } from "./api.js";
import { time } from "./clock.js";
import { Lightbox, Thumbnails } from "./patient.js";
import { Field, Loaded, Send, Wrong, count, go, html, name, say, useLayoutEffect, useEvent, useLoad, useRef, useState, useSubmit } from "./parts.js";

const MOST = 50, LARGEST = 20 << 20; // files, bytes: as the server takes them
let serial = 0;
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

// The server reads the files in their order: of what was sent, the first bytes are the first file's.
function shares(pictures, loaded) {
  let begins = 0;
  return pictures.map(({ file }) => {
    const share = Math.min(1, Math.max(0, (loaded - begins) / file.size));
    begins += file.size;
    return share;
  });
}

function Chosen({ picture, share, fault, onAway }) {
  const [shown, setShown] = useState(true);
  return html`<li class=${fault ? "faulty" : ""}>
    ${shown ? html`<img src=${picture.url} alt="" onError=${() => setShown(false)} />` : html`<span class="nopreview">No preview</span>`}
    <span class="filename">${picture.file.name}<small>${size(picture.file.size)}</small></span>
    ${share !== undefined && html`<progress max="1" value=${share} aria-label=${`Sent of ${picture.file.name}`}></progress>`}
    ${fault && html`<small class="fault" role="alert">${fault}</small>`}
    <button type="button" class="plain" aria-label=${`Remove ${picture.file.name}`} onClick=${onAway}>✕</button></li>`;
}

export function ReportPage({ patientId, reportId }) {
  const [pictures, setPictures] = useState([]);
  const [loaded, setLoaded] = useState(null);
  const [faults, setFaults] = useState({});
  const [large, setLarge] = useState(null); // the pictures as they were, and which: one may be taken away meanwhile
  const [over, setOver] = useState(false);
  const input = useRef();
  const page = useLoad(async () => (reportId ? (await get(`/reports/${reportId}`)) : { patient: await get(`/patient/${patientId}`), images: [] }), [reportId, patientId]);
  const report = page.data;
  const base = useRef(); // what the text began with: the report may be loaded again meanwhile
  if (report && (!base.current || base.current.diagnosis === report.diagnosis)) base.current = report;
  const mine = !reportId || (report && mayChange(report));

  const add = (files) => setPictures((before) => [...before, ...[...files].map((file) => ({ id: ++serial, file, url: URL.createObjectURL(file) }))]);
  const remove = (picture) => {
    URL.revokeObjectURL(picture.url);
    setPictures((before) => before.filter((one) => one !== picture));
    setFaults(({ [picture.id]: gone, ...rest }) => rest);
  };
  const latest = useRef();
  latest.current = pictures;
  useLayoutEffect(() => () => latest.current.forEach(({ url }) => URL.revokeObjectURL(url)), []);

  const form = useSubmit(async ({ diagnosis }) => {
    const big = pictures.filter(({ file }) => file.size > LARGEST);
    setFaults(Object.fromEntries(big.map(({ id }) => [id, "Larger than 20 MB."])));
    if (big.length) return null;
    const body = new FormData();
    if (!reportId) body.append("patient_id", patientId);
    body.append("diagnosis", diagnosis);
    pictures.forEach(({ file }, index) => body.append("images", file, `${index + 1} ${file.name}`)); // the server says which is wrong
    const options = { form: body, onprogress: (sent, total) => setLoaded(Math.max(0, sent - (total - pictures.reduce((sum, { file }) => sum + file.size, 0)))) };
    try {
      setLoaded(0);
      if (reportId) await call("PATCH", `/reports/${reportId}`, { ...options, etag: `"${base.current.version}"` });
      else await post("/reports", undefined, { ...options, content: [patientId, diagnosis, pictures.map(({ id }) => id)] });
      say(reportId ? "The report is saved." : "The report is filed.");
      return () => go(`/patients/${report.patient.id}`);
    } catch (problem) {
      const told = new Map((problem.errors.images ?? []).map((text) => [Number(/\d+/.exec(text)), text.slice(text.indexOf(": ") + 1).trim()]));
      const found = pictures.map(({ id }, index) => [id, told.get(index + 1)]).filter(([, text]) => text);
      setFaults(Object.fromEntries(found));
      if (found.length) problem.message = `Nothing was saved: ${count(found.length, "picture")} cannot be taken. Remove what is marked, and file the rest.`;
      if (problem.status === 412 && problem.body.current) {
        base.current = problem.body.current;
        problem.message += ` Its text is now: “${base.current.diagnosis ?? ""}”. Save once more to replace it by yours.`;
      }
      throw problem;
    } finally { setLoaded(null); }
  });
  useEvent("paste", ({ clipboardData }) => mine && !form.busy && add(clipboardData.files), [mine, form.busy]);
  const dropFaulty = () => pictures.filter(({ id }) => faults[id]).forEach(remove);
  const removeImage = useSubmit(async (image) => { await call("DELETE", `/reports/${reportId}/images/${image.id}`); await page.reload(); });
  const archive = useSubmit(async () => {
    await call("DELETE", `/reports/${reportId}`, { etag: `"${report.version}"` });
    say("The report is archived.");
    return () => go(`/patients/${report.patient.id}`);
  });
  const sent = loaded === null ? [] : shares(pictures, loaded);
  return html`<${Loaded} of=${page}>${report && html`
    <div class="head"><div><h1>${reportId ? "Report" : "New report"}</h1>
      <p class="quiet"><a href=${`#/patients/${report.patient.id}`}>${name(report.patient)}</a> · MRN ${report.patient.mrn}${reportId && ` · ${report.doctor_name}, ${time(report.created_at)}`}</p></div>
      ${reportId && mine && html`<div class="tools"><button disabled=${archive.busy} onClick=${archive.submit}>Archive</button></div>`}</div>
    <${Wrong} error=${archive.error} />${report.images.length > 0 && html`<${Thumbnails} images=${report.images} onOpen=${(at) => setLarge({ images: report.images, at })}>
      ${(image) => mine && html`<button class="plain remove" aria-label="Take this picture away" disabled=${removeImage.busy} onClick=${() => removeImage.submit(image)}>✕</button>`}<//>
      <${Wrong} error=${removeImage.error} />`}${mine ? html`<form class="report" onSubmit=${form.submit}>
      <${Field} label="Diagnosis" name="diagnosis" as="textarea" rows="6" maxlength="20000" defaultValue=${report.diagnosis ?? ""} errors=${form.errors} autofocus />
      <div class=${`drop ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
          onDrop=${(event) => { event.preventDefault(); setOver(false); add(event.dataTransfer.files); }}>
        <p>Drop pictures here, paste them, or <button type="button" onClick=${() => input.current.click()}>choose files…</button></p>
        <p class="quiet">${MOST} at most, 20 MB each: JPEG, PNG, WebP, GIF, TIFF, BMP.</p>
        <input type="file" ref=${input} hidden multiple accept="image/*" aria-label="Pictures" onChange=${(event) => { add(event.target.files); event.target.value = ""; }} />
        <ul class="chosen">${pictures.map((picture, index) => html`<${Chosen} key=${picture.id} picture=${picture} share=${sent[index]}
          fault=${faults[picture.id]} onAway=${() => remove(picture)} />`)}</ul></div>
      ${pictures.length > MOST && html`<p class="wrong">${pictures.length} pictures: ${MOST} fit into one report.</p>`}<${Wrong} error=${form.error} />
      <p class="actions">${Object.keys(faults).length > 0 && html`<button type="button" onClick=${dropFaulty}>Remove what cannot be taken</button>`}
        <span class="quiet">${pictures.length > 0 && `${count(pictures.length, "picture")}, ${size(pictures.reduce((sum, { file }) => sum + file.size, 0))}`}</span>
        <${Send} of=${form} disabled=${form.busy || pictures.length > MOST}>${reportId ? "Save" : "File the report"}<//></p>
    </form>` : html`<p class="prose">${report.diagnosis}</p>`}
    ${large && html`<${Lightbox} ...${large} onClose=${() => setLarge(null)} />`}`}<//>`;
}
