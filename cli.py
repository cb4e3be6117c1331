"""The `flask` commands of the project."""

import gc
import random
import re
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial, wraps
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import with_appcontext
from pydantic import ValidationError
from sqlalchemy import func, select

from clinic import (
    accounts,
    archive,
    demo,
    idempotency,
    image_check,
    image_moves,
    images,
    search,
    startup,
    thumbnails,
    timezone_change,
    welcome,
)
from clinic.history import checkpoints, heads, keys, rotation, verification
from clinic.stores import StoreError, stores
from config import is_known_zone
from models import Absence, Appointment, Image, Patient, Report, Role, User
from schemas import UserIn
from server import database, errors, metrics
from server.database import db
from server.times import now, today

CHORES = SWEEP, VERIFY = "sweep", "verify"  # /metrics shows how long ago each ended well


def writing(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command that writes: it runs in an application context, and stops first if a setting is wrong."""

    @with_appcontext
    @wraps(command)
    def checked(*args: Any, **options: Any) -> None:
        startup.stop_on_wrong_settings()
        command(*args, **options)

    return checked


@click.command("create-admin")
@click.option("--email", prompt=True)
@click.option("--first-name", prompt=True)
@click.option("--last-name", prompt=True)
@click.password_option(help="asked for when it is not given")
@writing
def create_admin(email: str, first_name: str, last_name: str, password: str) -> None:
    """Make an administrator."""
    try:
        account = UserIn(
            first_name=first_name, last_name=last_name, email=email, password=password, role=str(Role.ADMIN)
        )
        password = accounts.hash_of(account)
        database.in_transaction(lambda: accounts.create(account, password, is_active=True))
    except ValidationError as error:
        raise click.ClickException(str(errors.Invalid(errors.field_errors(error.errors())))) from None
    except Exception as error:
        known = error if isinstance(error, errors.APIError) else errors.from_database(error)
        if known is None:
            raise
        raise click.ClickException(known.msg) from None
    click.echo(f"{account.email} is an administrator and can sign in.")


@click.command("reset-link")
@click.argument("email")
@writing
def reset_link(email: str) -> None:
    """Print a link with which EMAIL can set a new password, once and within an hour."""
    link = accounts.new_reset_link(email)
    if link is None:
        raise click.ClickException(f"There is no active user {email}.")
    click.echo(link)


class Age(click.ParamType[timedelta]):
    """A length of time: 90d, 12w, 24h."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the length of time that `value` spells. Fails with a usage error."""
        match = re.fullmatch(r"([0-9]{1,4})([hdw])", value)
        if match is None:
            self.fail("give a number of hours, days or weeks, such as 24h, 90d or 12w", param, ctx)
        return int(match[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}[match[2]]


@click.command("welcome")
@writing  # it writes nothing, but `make run` must not welcome anybody where a setting stops the server
def welcome_reader() -> None:
    """Print where the server will be, what to try first, and who may sign up. `make run` does this before it serves."""
    click.echo(welcome.message())


@click.command("purge")
@click.option("--older-than", type=Age(), help="also erase, for good, what was archived longer ago: 90d, 12w, 24h")
@click.option("--dry-run", is_flag=True, help="only say what would be erased")
@writing
def purge(older_than: timedelta | None, dry_run: bool) -> None:
    """Delete leftovers, and erase records that were archived long ago.

    Leftovers are images that a crash left behind, ended logins and old counters. Only --older-than erases records, with
    their images; the history keeps their entries without the values. You can stop this command and run it again.
    """
    if older_than is None and dry_run:
        raise click.UsageError("--dry-run goes with --older-than.")
    if older_than is not None:
        erase(now() - older_than, dry_run)
    if dry_run:
        return
    click.echo(f"{accounts.sweep()} ended logins and old counts forgotten, {idempotency.sweep()} idempotency keys.")
    db.session.commit()
    try:
        click.echo(f"{images.sweep()} images destroyed in the store that no report has.")
    except StoreError as error:
        raise click.ClickException(f"The image store failed: {error}. Run this again later.") from None
    metrics.note_done(current_app.config["INSTANCE_PATH"], SWEEP)


def erase(before: datetime, dry_run: bool) -> None:
    """Erase the records that were archived before this instant, each in its own transaction, and print how many."""
    for kind, what in (
        (Patient, "patients, each with reports and appointments,"),
        (Report, "other reports, each with images,"),
        (Appointment, "other appointments"),
        (Image, "images that were replaced or taken away"),
        (Absence, "absences"),
        (User, "users"),
    ):
        found = list(db.session.scalars(archive.erasable(kind, before)))
        db.session.rollback()
        if dry_run:
            click.echo(f"{len(found)} {what} would be erased: {', '.join(map(str, found[:20])) or 'none'}")
            continue
        with click.progressbar(found, hidden=not found, label=f"erasing {what}", file=sys.stderr) as ids:
            erased = sum(database.in_transaction(partial(archive.erase, kind, record_id, before)) for record_id in ids)
        click.echo(f"{erased} {what} erased.")


@click.command("reindex")
@writing
def reindex() -> None:
    """Write the search words of all patients and staff again, after PHONE_REGION has changed.

    The server may run meanwhile. You can stop this command and run it again.
    """
    for kind, what in ((Patient, "patients"), (User, "users")):
        total = db.session.scalar(select(func.count()).select_from(kind)) or 0
        db.session.rollback()
        with click.progressbar(length=total, label=f"indexing {what}", file=sys.stderr) as bar:
            for number in search.index_again(kind):
                bar.update(number)
        click.echo(f"{total} {what} indexed.")


@click.group("audit")
def audit_group() -> None:
    """Check the record history for tampering."""


@audit_group.command("verify")
@click.option("--head", help="what `flask audit head` printed earlier: finds an older copy of the database put back")
@click.option("--checkpoint", is_flag=True, help="also print a checkpoint for --since, if the history is whole")
@click.option("--since", metavar="CHECKPOINT", help="check only what was written since an earlier --checkpoint")
@click.option("--processes", type=click.IntRange(1, 64), help="1 spares a server that is busy [default: one a core]")
@with_appcontext
def audit_verify(head: str | None, checkpoint: bool, since: str | None, processes: int | None) -> None:
    """Check the whole history and name each record at fault."""
    if since is not None and (head is not None or checkpoint):
        raise click.UsageError("--since does not go with --head or --checkpoint, which need the whole history.")
    signed: list[str] = []
    try:
        if since is not None:
            _print_faults(verification.verify_since(since, processes))
        else:
            _print_faults(verification.verify(head, processes, signed.append if checkpoint else None))
    except (keys.WrongAuditKey, checkpoints.CheckpointRefused, heads.StillWriting) as error:
        raise click.ClickException(f"{getattr(error, 'msg', error)}\nNothing was verified.") from None
    metrics.note_done(current_app.config["INSTANCE_PATH"], VERIFY)
    click.echo("The history since the checkpoint is whole." if since is not None else "The history is whole.")
    for line in signed:
        click.echo(line)


def _print_faults(faults: Iterable[str]) -> None:
    """Print each fault, and end the command with exit code 1 if there is any."""
    number = 0
    for fault in faults:
        click.echo(fault)
        number += 1
    if number:
        raise click.ClickException(f"{number} found.")


@audit_group.command("head")
@click.option("--kept", metavar="LINE", help="an earlier head: stop if the database lacks any of its entries")
@with_appcontext
def audit_head(kept: str | None) -> None:
    """Print the head of the whole history. Keep the line elsewhere, for --kept and verify --head."""
    try:
        click.echo(heads.head_of_all(kept))
    except (heads.HeadRefused, heads.StillWriting) as error:
        raise click.ClickException(str(error)) from None


@audit_group.command("check-key")
@with_appcontext
def audit_check_key() -> None:
    """Stop with a sentence if AUDIT_KEY is not the key of this database's history."""
    startup.stop_on_wrong_settings([keys.check_audit_key])


@audit_group.command("rotate")
@with_appcontext
def audit_rotate() -> None:
    """Change the key of the record history to AUDIT_KEY.

    First set AUDIT_KEY to a new key, and add the key in use to AUDIT_KEY_PREVIOUS. The history is verified, then new
    entries are written with the new key. Old entries stay as they are: keep their keys in AUDIT_KEY_PREVIOUS for as
    long as the records. Restart every server afterwards: until then it refuses writes with 503.
    """
    try:
        number = rotation.rotate()
    except (rotation.RotationRefused, heads.StillWriting) as error:
        raise click.ClickException(f"{error} The key was not changed.") from None
    except keys.WrongAuditKey as error:
        raise click.ClickException(error.msg) from None
    click.echo(f"The history is whole. From now on it is written with key number {number}. Restart the servers.")


@click.group("images")
def images_group() -> None:
    """Check the images in the store."""


def _print_faults_of_each(
    label: str, find: Callable[[Callable[[int], None], Callable[[int], None]], Iterable[str]]
) -> None:
    """Print the faults that `find(begin, progress)` yields, as `_print_faults` does, with a progress bar."""
    bar: Any = click.progressbar(length=0, label=label, file=sys.stderr)

    def begin(count: int) -> None:
        bar.length, bar.hidden = count, not count

    with bar:
        _print_faults(find(begin, bar.update))


@images_group.command("verify")
@with_appcontext
def images_verify() -> None:
    """Compare the images in the database with the pictures in the store, and name each difference."""
    try:
        _print_faults_of_each("comparing images", image_check.verify)
    except StoreError as error:
        raise click.ClickException(f"The image store failed: {error}. Nothing was compared; run this again.") from None
    click.echo("Every image has its picture, and every picture its image.")


@images_group.command("thumbnails")
@with_appcontext
def images_thumbnails() -> None:
    """Make the thumbnails that images on the local disk or S3 lack: those from before there were thumbnails.

    The server may run meanwhile. You can stop this command and run it again. It names each picture that it cannot read.
    """
    try:
        _print_faults_of_each("making thumbnails", thumbnails.make_missing)
    except StoreError as error:
        raise click.ClickException(f"The image store failed: {error}. Run this again to go on.") from None
    click.echo(f"Every image on {' and '.join(store.name for store in stores().with_thumbnails())} has its thumbnail.")


STORES = {"local": "the local disk", "cloudinary": "Cloudinary", "s3": "S3"}


@images_group.command("move")
@click.option("--to", type=click.Choice(list(STORES)), required=True, help="the store that gets the images")
@writing
def images_move(to: str) -> None:
    """Move every image to one store, from wherever it is.

    Each picture is copied, read back and compared before the old one is destroyed. The server may run meanwhile. You
    can stop this command and run it again. It names each image that it cannot move. Set IMAGE_STORE first, so that new
    images go there too. Links to an image that is moved stop working: the next answer has the new links.
    """
    if stores().chosen.name != STORES[to]:
        click.echo(f"Note: new images still go to {stores().chosen.name}. Set IMAGE_STORE={to}.", err=True)
    try:
        _print_faults_of_each("moving images", partial(image_moves.move_all, STORES[to]))
    except StoreError as error:
        raise click.ClickException(f"The image store failed: {error}. Run this again to go on.") from None
    click.echo(f"Every image is on {STORES[to]}.")


@click.command("check")
@with_appcontext
def check() -> None:
    """Stop with a sentence if AUDIT_KEY or TIMEZONE does not fit the database. Servers run it before workers start."""
    startup.stop_on_wrong_settings()


def _known_zone(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not is_known_zone(name):
        raise click.BadParameter("no such IANA time zone; examples are UTC and Africa/Nairobi")
    return name


@click.command("timezone")
@click.argument("zone", callback=_known_zone)
@click.option("--keep-wall-clock", is_flag=True, help="move every time that was entered, so that it shows the same")
@click.option("--dry-run", is_flag=True, help="only say what would be changed")
@with_appcontext
def set_timezone(zone: str, keep_wall_clock: bool, dry_run: bool) -> None:
    """Say that times were entered under ZONE, or change from the zone in use to ZONE.

    Without --keep-wall-clock every time stays the instant that it is, and is shown in ZONE. With it every time that
    staff entered shows what it showed, and becomes another instant. Try it with --dry-run, and back up the database.
    Stop the servers first: until they are restarted with TIMEZONE=ZONE, they refuse writes with 503.
    """
    try:
        database.check_schema()
        total = timezone_change.count_records() if keep_wall_clock else 0
        with click.progressbar(length=total, hidden=not total, label="moving times", file=sys.stderr) as bar:
            moves = timezone_change.change_timezone(zone, keep_wall_clock, dry_run, bar.update)
    except (timezone_change.NotChanged, errors.Unavailable) as error:
        raise click.ClickException(f"{error} Nothing was changed.") from None
    for column, count in moves.counts.items():
        click.echo(f"{column}: {'would move' if dry_run else 'moved'}: {count}")
    if moves.gaps:
        few = ", ".join(moves.gaps[:20]) + ", …" * (len(moves.gaps) > 20)
        click.echo(f"{zone} has not every time, as its clocks are put forward; the end of the gap stands for it: {few}")
    if moves.counts:
        click.echo(timezone_change.WARNING)
    if dry_run:
        click.echo(f"Nothing was changed. Without --dry-run the zone would be {zone}.")
    else:
        click.echo(f"The zone is {zone}. Set TIMEZONE={zone}, and restart the servers.")


@click.command("seed")
@click.option("--patients", type=click.IntRange(0, 10_000_000), default=200, show_default=True)
@click.option("--doctors", type=click.IntRange(0, 10_000), default=6, show_default=True)
@click.option("--appointments", type=click.IntRange(0, 10_000_000), default=300, show_default=True)
@click.option("--reports", type=click.IntRange(0, 1_000_000), default=24, show_default=True, help="each with pictures")
@click.option("--seed", "number", type=int, default=1, show_default=True, help="another number makes another clinic")
@click.option(
    "--first-day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="the Monday on which the appointments begin  [default: this week's]",
)
@click.option("--password", default="demo clinic password", show_default=True, help="of all users that are made")
@click.option("--add", is_flag=True, help="add to the patients in the database")
@click.option("--force", is_flag=True, help="run in production, too")
@writing
def seed_clinic(
    patients: int,
    doctors: int,
    appointments: int,
    reports: int,
    number: int,
    first_day: datetime | None,
    password: str,
    add: bool,
    force: bool,
) -> None:
    """Fill the database with a demonstration clinic, and print how to sign in."""
    if current_app.config["FLASK_ENV"] == "production" and not force:
        raise click.ClickException(
            "This is production: invented patients have no place here. (--force does it anyway.)"
        )
    if (appointments or reports) and not (patients and doctors):
        raise click.UsageError("Appointments and reports need patients and doctors: give some of both.")
    if demo.is_empty() or add:
        day = first_day.date() if first_day else today()
        total = patients + doctors + appointments + reports
        with click.progressbar(length=total, label="making a clinic", file=sys.stderr) as bar:
            clinic = demo.Clinic(
                patients,
                doctors,
                appointments,
                reports,
                password,
                day - timedelta(days=day.weekday()),
                random.Random(number),  # noqa: S311
                bar.update,
            )
            clinic.make()
        click.echo(f"Made: {doctors} doctors, {patients} patients, {appointments} appointments, {reports} reports.")
    else:
        click.echo("There are patients already, so nothing was made. To add to them: flask seed --add")
    if logins := demo.logins(10):
        click.echo(f"\nSign in with the password: {password}\n")
        click.echo("\n".join(f"  {role:<12} {email}" for email, role in logins))


COMMANDS: Iterable[click.Command] = (
    create_admin,
    reset_link,
    welcome_reader,
    purge,
    reindex,
    audit_group,
    images_group,
    check,
    set_timezone,
    seed_clinic,
)


def _without_traceback(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: a database that is away or locked is reported as a sentence, without a traceback."""

    @wraps(callback)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return callback(*args, **options)
        except Exception as error:
            if errors.is_temporary(error) and (known := errors.from_database(error)):
                raise click.ClickException(known.msg) from None
            raise

    return run


def _drop_tracebacks(command: click.Command) -> None:
    """Apply `_without_traceback` to the command, or to each command of a group."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _drop_tracebacks(part)
    elif command.callback:
        command.callback = _without_traceback(command.callback)


for _command in COMMANDS:
    _drop_tracebacks(_command)


def init_app(app: Flask) -> None:
    """Add the commands to `flask`."""
    for command in COMMANDS:
        app.cli.add_command(command)
    if context := click.get_current_context(silent=True):  # `flask` makes the application
        context.find_root().call_on_close(partial(_leave, app))
        _check_before_flask_run(app, context)


def _check_before_flask_run(app: Flask, context: click.Context) -> None:
    """Stop on a wrong setting if `flask run` makes the application. Flask's own command has no `@writing`."""
    if context.info_name == "run":
        with app.app_context():
            startup.stop_on_wrong_settings()


def _leave(app: Flask) -> None:
    """Close the connections, and let Python end without a search for garbage, which takes a third of many commands."""
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
    gc.freeze()
