import * as api from "./generated";
import { check, clock, doctor, images, password, patient } from "./story";

async function main() {
  const accounts = new api.AccountsApi();
  await accounts.signup({ userIn: doctor });
  const login = await accounts.login({ credentials: { email: doctor.email, password } });
  const signed = new api.Configuration({ accessToken: login.data.access_token });
  const patients = new api.PatientsApi(signed);
  const appointments = new api.AppointmentsApi(signed);
  const made = (await patients.createPatient({ patientIn: patient })).data;
  await patients.updatePatient({ patientId: made.id, patientPatch: made });
  const filed = (await new api.ReportsApi(signed).createReport({ patientId: made.id, images })).data;
  const appointmentIn = { patient_id: made.id, appointment_datetime: clock };
  const booked = (await appointments.createAppointment({ appointmentIn })).data;
  const query = { patientId: [made.id], status: [api.AppointmentStatus.Scheduled, api.AppointmentStatus.NoShow] };
  const found = (await appointments.listAppointments(query)).data;
  check(made, filed, booked, found);
}

main();
