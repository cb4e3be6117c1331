"""Files and changes reports with their images, which are sent to the store outside of a transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import joinedload, selectinload
from werkzeug.datastructures import FileStorage

from clinic import rights
from clinic.idempotency import made
from clinic.image_links import image_links
from clinic.images import uploaded
from models import Report, find, save
from schemas import ReportOut
from server.database import in_transaction, outside_transaction

with_images = (joinedload(Report.patient), joinedload(Report.doctor), selectinload(Report.images))


def shown(report_id: int) -> ReportOut:
    """Return the answer of a report. Raises `NotFound`."""
    return ReportOut.of(find(Report, report_id, *with_images), image_links())


def file(fields: dict[str, Any], images: Sequence[FileStorage]) -> ReportOut:
    """File a report with its images, and commit it. Raises as `rights.create` and `uploaded` do."""
    rights.check_report(fields)

    def file_report() -> ReportOut:
        report = rights.create(Report, fields)
        uploads.attach_to(report)
        made(save(report))
        return ReportOut.of(report, image_links())

    with outside_transaction(), uploaded(images) as uploads:
        return in_transaction(file_report)


def change(report_id: int, changes: dict[str, Any], images: Sequence[FileStorage]) -> ReportOut:
    """Change a report, and add images or, with `replace_images` among the changes, replace them. Commits.

    Raises as `rights.editable`, `rights.change` and `uploaded` do.
    """
    replace = changes.pop("replace_images", False)
    rights.check_report(changes, rights.editable(Report, report_id))

    def change_report() -> ReportOut:
        report = rights.editable(Report, report_id, *with_images)
        rights.change(report, changes)
        uploads.attach_to(report, replace)
        return ReportOut.of(save(report), image_links())

    with outside_transaction(), uploaded(images) as uploads:
        return in_transaction(change_report)
