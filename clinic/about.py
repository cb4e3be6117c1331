"""What the OpenAPI document says of the whole interface, and of the answers that are no JSON."""

from server.openapi import About, binary, query_parameter

VERSION = "1.0.0"
ABOUT = About(
    title="Hosi Server",
    version=VERSION,
    description="""The backend of a hospital or clinic: staff, patients, appointments, and reports with images.

Sign in with `POST /login` and send `Authorization: Bearer <access_token>`. The access token is good for 30 minutes;
`POST /refresh`, sent with the refresh token, trades it for a new pair.

- Dates and times are ISO 8601. A time of a request may have no offset: then it is the clinic's local time. A time of an
  answer is a `date-time` of RFC 3339 and carries the clinic's offset.
- Where a date, a time or a word may be null, a request may also send `""` for null, as forms do.
- Ids may be sent as strings. The words of a list may be sent in any case: `"No Show"` is `no_show`.
- A client may change a record that it read and send the whole record back: fields that the server owns are ignored.
- A failed request changes nothing and answers `{"msg": "…", "code": "…", "errors": {"field": ["…"]}}`.
""",
    tags={
        "Accounts": "Sign up, sign in, sign out.",
        "Staff": "The staff directory.",
        "Desk": "Working hours, absences, and free slots.",
        "Patients": "Patients.",
        "Appointments": "Appointments, each with the names of patient and doctor.",
        "Reports": "Medical reports and their images.",
        "Statistics": "Counts over a span of days.",
        "Audit": "The history of every record, and sign-ins.",
        "Server": "The server itself.",
    },
    shown={
        "conflict": ["AppointmentOut"],
        "current": ["UserOut", "PatientOut", "AppointmentOut", "ReportOut", "AbsenceOut"],
    },
    parts={
        "merged_into": {
            "type": "integer",
            "description": "With `not_found`: the patient into whom this patient was merged.",
        }
    },
)
LINKS = {"sign up": "/signup", "sign in": "/login"}  # `GET /` answers these, and the links of the server itself

# `GET /media/<key>`
IMAGE_FILE = {
    "parameters": [
        query_parameter("reader", "The id of the user that the link was made for."),
        query_parameter("expires", "The time at which the link expires, in seconds since 1970."),
        query_parameter("signature", "The server's signature of the link."),
    ],
    "responses": {
        "200": binary("image/*", "The image."),
        "304": {"description": "The image has not changed since the `ETag` in `If-None-Match`."},
    },
}
