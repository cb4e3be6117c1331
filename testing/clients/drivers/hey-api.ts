import * as api from "./generated";
import { client } from "./generated/client.gen";
import { zAppointmentIn, zPatientIn, zPatientPatch } from "./generated/zod.gen";
import { address, check, clock, doctor, images, password, patient } from "./story";

async function main() {
  client.setConfig({ baseUrl: address, throwOnError: true });
  await api.signup({ body: doctor, throwOnError: true });
  const login = await api.login({ body: { email: doctor.email, password }, throwOnError: true });
  client.setConfig({ auth: login.data.access_token });
  const made = (await api.createPatient({ body: zPatientIn.parse(patient), throwOnError: true })).data;
  const record = zPatientPatch.parse(made);
  await api.updatePatient({ path: { patient_id: made.id }, body: record, throwOnError: true });
  const filed = (await api.createReport({ body: { patient_id: made.id, images }, throwOnError: true })).data;
  const booking = zAppointmentIn.parse({ patient_id: made.id, appointment_datetime: clock });
  const booked = (await api.createAppointment({ body: booking, throwOnError: true })).data;
  const query = { patient_id: [made.id], status: ["scheduled" as const, "no_show" as const] };
  const found = (await api.listAppointments({ query, throwOnError: true })).data;
  check(made, filed, booked, found);
}

main();
