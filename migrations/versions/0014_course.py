"""discharges are counted by an index; patients can be merged

Revision ID: 0014
Revises: 0013
Create Date: 2026-11-27 07:00:00

The purge of the earlier release cannot erase a patient who was merged, nor a record that was moved: run it afterwards.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

LIVE, MERGED = sa.text("deleted_at IS NULL"), sa.text("merged_into_id IS NOT NULL")
KINDS = ("patient", "appointment", "report")
DISCHARGED, MERGED_INTO = "ix_patients_discharged_at", "ix_patients_merged_into_id"


def upgrade() -> None:
    op.create_index(DISCHARGED, "patients", ["discharged_at"], sqlite_where=LIVE, postgresql_where=LIVE)
    reference = "CONSTRAINT fk_patients_merged_into_id_patients REFERENCES patients (id)"
    op.execute(f"ALTER TABLE patients ADD COLUMN merged_into_id INTEGER {reference}")
    op.add_column("patients", sa.Column("merged", sa.JSON(), nullable=True))
    op.create_index(MERGED_INTO, "patients", ["merged_into_id"], sqlite_where=MERGED, postgresql_where=MERGED)
    op.create_table(
        "moved_records",
        sa.Column("id", sa.Integer(), nullable=False),
        *(sa.Column(f"{kind}_id", sa.Integer(), nullable=kind != "patient") for kind in KINDS),
        sa.CheckConstraint(
            "(appointment_id IS NULL) <> (report_id IS NULL)", name=op.f("ck_moved_records_one_record")
        ),
        *(
            sa.ForeignKeyConstraint([f"{kind}_id"], [f"{kind}s.id"], name=op.f(f"fk_moved_records_{kind}_id_{kind}s"))
            for kind in KINDS
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moved_records")),
    )
    for kind in KINDS:
        op.create_index(op.f(f"ix_moved_records_{kind}_id"), "moved_records", [f"{kind}_id"])


def downgrade() -> None:
    op.drop_table("moved_records")
    op.drop_index(MERGED_INTO, "patients")
    op.drop_column("patients", "merged")
    op.drop_column("patients", "merged_into_id")
    op.drop_index(DISCHARGED, "patients")
