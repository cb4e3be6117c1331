import { getHosiServer } from "./generated/axios";
import { check, clock, doctor, images, password, patient } from "./story";

async function main() {
  const api = getHosiServer();
  await api.signup(doctor);
  const login = await api.login({ email: doctor.email, password });
  const signed = { headers: { Authorization: `Bearer ${login.data.access_token}` } };
  const made = (await api.createPatient(patient, signed)).data;
  await api.updatePatient(made.id, made, signed);
  const filed = (await api.createReport({ patient_id: made.id, images }, signed)).data;
  const booked = (await api.createAppointment({ patient_id: made.id, appointment_datetime: clock }, signed)).data;
  // axios sends status[]=scheduled&status[]=no_show
  const found = (await api.listAppointments({ patient_id: [made.id], status: ["scheduled", "no_show"] }, signed)).data;
  check(made, filed, booked, found);
}

main();
