"""The title, version, description and tags of the OpenAPI document."""

from server.openapi import About

VERSION = "1.0.0"
ABOUT = About(
    title="Hosi Server",
    version=VERSION,
    description="""The backend of a hospital or clinic: staff, patients, appointments, and reports with images.

Sign in with `POST /login` and send `Authorization: Bearer <access_token>`. The access token is good for 30 minutes;
`POST /refresh`, sent with the refresh token, trades it for a new pair.

- Dates and times are ISO 8601. A time without an offset is the clinic's local time. Answers carry the clinic's offset.
- Ids may be sent as strings. The words of a list may be sent in any case: `"No Show"` is `no_show`.
- A client may change a record that it read and send the whole record back: fields that the server owns are ignored.
- A failed request changes nothing and answers `{"msg": "…", "errors": {"field": ["…"]}}`.
""",
    tags={
        "Accounts": "Sign up, sign in, sign out.",
        "Staff": "The staff directory.",
        "Patients": "Patients.",
        "Appointments": "Appointments, each with the names of patient and doctor.",
        "Reports": "Medical reports and their images.",
        "Audit": "The history of every record, and sign-ins.",
        "Server": "The server itself.",
    },
)
LINKS = {"sign up": "/signup", "sign in": "/login"}  # `GET /` answers these, and the links of the server itself
