import * as api from "./generated/fetch";
import * as zod from "./generated/zod";
import { check, clock, doctor, images, password, patient } from "./story";

function right<A extends { status: number }, S extends number>(answer: A, status: S): Extract<A, { status: S }> {
  if (answer.status !== status) throw new Error(JSON.stringify(answer));
  return answer as Extract<A, { status: S }>;
}

async function main() {
  right(await api.signup(zod.signupBody.parse(doctor)), 201);
  const login = right(await api.login({ email: doctor.email, password }), 200);
  const signed = { headers: { Authorization: `Bearer ${login.data.access_token}` } };
  const made = right(await api.createPatient(zod.createPatientBody.parse(patient), signed), 201).data;
  zod.getPatientResponse.parse(made);
  right(await api.updatePatient(made.id, zod.updatePatientBody.parse(made), signed), 200);
  const report = zod.createReportBody.parse({ patient_id: made.id, images });
  const filed = right(await api.createReport(report, signed), 201).data;
  zod.getReportResponse.parse(filed);
  const booking = zod.createAppointmentBody.parse({ patient_id: made.id, appointment_datetime: clock });
  const booked = right(await api.createAppointment(booking, signed), 201).data;
  zod.getAppointmentResponse.parse(booked);
  const found = await api.listAppointments({ patient_id: [made.id], status: ["scheduled", "no_show"] }, signed);
  check(made, filed, booked, zod.listAppointmentsResponse.parse(right(found, 200).data));
}

main();
