"""Columns of the export: FOCUS's own in alphabetical order, then ours behind ``x_``, as the specification asks.

Types, levels and null rules are those of FOCUS 1.2, and of 1.3 where a column came with it. Left out are conditional
columns of things that the ledger does not know (capacity reservations, resources, zones); those of commitments are
there and null, as rules on other columns refer to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

Kind = Literal["cost", "price", "quantity", "consumed", "text", "instant", "nanoseconds", "flag"]
Level = Literal["mandatory", "conditional", "recommended", "custom"]

VERSIONS: Final = ("1.2", "1.3")
"""Versions of FOCUS that can be written. 1.3 adds columns; those of 1.2 stay."""

TYPES: Final[dict[Kind, pa.DataType]] = {
    "cost": pa.decimal128(38, 12),
    "price": pa.decimal128(38, 18),
    "quantity": pa.decimal128(38, 18),
    "consumed": pa.decimal128(38, 9),
    "text": pa.string(),
    "instant": pa.timestamp("ms", "UTC"),
    "nanoseconds": pa.timestamp("ns", "UTC"),
    "flag": pa.bool_(),
}
"""Kind → Arrow type, as in a Parquet file."""

DECIMALS: Final[dict[Kind, int]] = {"cost": 12, "price": 18, "quantity": 18, "consumed": 9}
"""Kinds that are decimal numbers, with their decimals."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: its Column ID, which is also the view's name for it.
        kind: see `TYPES`.
        level: FOCUS's feature level; ``custom`` is ours.
        nullable: whether it may be null.
        since: version of FOCUS that it came with.
        of: the view's column that it is read from, where that has another name.
    """

    name: str
    kind: Kind
    level: Level
    nullable: bool = False
    since: str = "1.2"
    of: str = ""


_FOCUS: Final = (
    Column("BilledCost", "cost", "mandatory"),
    Column("BillingAccountId", "text", "mandatory"),
    Column("BillingAccountName", "text", "mandatory", nullable=True),
    Column("BillingCurrency", "text", "mandatory"),
    Column("BillingPeriodEnd", "instant", "mandatory"),
    Column("BillingPeriodStart", "instant", "mandatory"),
    Column("ChargeCategory", "text", "mandatory"),
    Column("ChargeClass", "text", "mandatory", nullable=True),
    Column("ChargeDescription", "text", "mandatory", nullable=True),
    Column("ChargeFrequency", "text", "recommended"),
    Column("ChargePeriodEnd", "instant", "mandatory"),
    Column("ChargePeriodStart", "instant", "mandatory"),
    *(
        Column(f"CommitmentDiscount{part}", "consumed" if part == "Quantity" else "text", "conditional", nullable=True)
        for part in ("Category", "Id", "Name", "Quantity", "Status", "Type", "Unit")
    ),
    Column("ConsumedQuantity", "consumed", "conditional", nullable=True),
    Column("ConsumedUnit", "text", "conditional", nullable=True),
    Column("ContractedCost", "cost", "mandatory"),
    Column("ContractedUnitPrice", "price", "conditional", nullable=True),
    Column("EffectiveCost", "cost", "mandatory"),
    Column("HostProviderName", "text", "mandatory", nullable=True, since="1.3", of="ProviderName"),
    Column("InvoiceId", "text", "recommended", nullable=True),
    Column("InvoiceIssuerName", "text", "mandatory"),
    Column("ListCost", "cost", "mandatory"),
    Column("ListUnitPrice", "price", "conditional", nullable=True),
    Column("PricingCategory", "text", "conditional", nullable=True),
    Column("PricingCurrency", "text", "conditional"),
    Column("PricingCurrencyContractedUnitPrice", "price", "conditional", nullable=True),
    Column("PricingCurrencyEffectiveCost", "cost", "conditional"),
    Column("PricingCurrencyListUnitPrice", "price", "conditional", nullable=True),
    Column("PricingQuantity", "quantity", "mandatory", nullable=True),
    Column("PricingUnit", "text", "mandatory", nullable=True),
    Column("ProviderName", "text", "mandatory"),
    Column("PublisherName", "text", "mandatory"),
    Column("RegionId", "text", "conditional", nullable=True),
    Column("RegionName", "text", "conditional", nullable=True),
    Column("ServiceCategory", "text", "mandatory"),
    Column("ServiceName", "text", "mandatory"),
    Column("ServiceProviderName", "text", "mandatory", since="1.3", of="ProviderName"),
    Column("ServiceSubcategory", "text", "recommended"),
    Column("SkuId", "text", "conditional", nullable=True),
    Column("SkuMeter", "text", "conditional", nullable=True),
    Column("SkuPriceDetails", "text", "conditional", nullable=True),
    Column("SkuPriceId", "text", "conditional", nullable=True),
    Column("SubAccountId", "text", "conditional", nullable=True),
    Column("SubAccountName", "text", "conditional", nullable=True),
    Column("SubAccountType", "text", "conditional", nullable=True),
    Column("Tags", "text", "conditional", nullable=True),
)

_OURS: Final = (
    Column("x_BookVersion", "text", "custom"),
    Column("x_ChargeStatus", "text", "custom"),
    Column("x_Component", "text", "custom"),
    Column("x_CostComplete", "flag", "custom"),
    Column("x_Device", "text", "custom", nullable=True),
    Column("x_HostType", "text", "custom", nullable=True),
    Column("x_ListPriceKnown", "flag", "custom"),
    Column("x_MatchedBy", "text", "custom"),
    Column("x_Model", "text", "custom", nullable=True),
    Column("x_Operation", "text", "custom", nullable=True),
    Column("x_PriceId", "text", "custom"),
    Column("x_ProviderKnown", "flag", "custom"),
    Column("x_ServiceTier", "text", "custom", nullable=True),
    Column("x_SpanId", "text", "custom"),
    Column("x_StartTime", "nanoseconds", "custom"),
    Column("x_TraceId", "text", "custom"),
)

COLUMNS: Final = (*_FOCUS, *_OURS)
"""All columns in the order of a file."""


def columns_of(version: str) -> tuple[Column, ...]:
    """Columns of a file that conforms to that version, in order."""
    return tuple(column for column in COLUMNS if column.since <= version)
