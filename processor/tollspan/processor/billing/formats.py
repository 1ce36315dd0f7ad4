"""Billing exports as data: which of their columns tells what.

A format is recognised by its columns. Sources: FOCUS 1.0 to 1.3 (focus.finops.org), the data dictionaries of AWS CUR
2.0 and of the legacy CUR, whose CSV says ``lineItem/UnblendedCost`` for ``line_item_unblended_cost``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tollspan.processor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BillFormat:
    """One kind of billing export.

    Attributes:
        name: as with ``--bill-format`` and in the store.
        needs: columns that it is recognised by.
        columns: what a line says → columns that tell it, the first that is there.
        tags: column with tags, a map or a JSON object.
        categories: the export's kinds of lines, in lower case → FOCUS's charge categories.
        constant: what its lines say where no column does.
    """

    name: str
    needs: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    tags: tuple[str, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)


_CATEGORIES: Final = {name.lower(): name for name in ("Usage", "Purchase", "Tax", "Credit", "Adjustment")}

FOCUS: Final = BillFormat(
    name="focus",
    needs=("BilledCost", "ChargePeriodStart", "ChargeCategory"),
    columns={
        "cost": ("BilledCost",),
        "day": ("ChargePeriodStart",),
        "period": ("BillingPeriodStart",),
        "category": ("ChargeCategory",),
        "issuer": ("InvoiceIssuerName", "InvoiceIssuer"),
        "account": ("BillingAccountId",),
        "provider": ("ServiceProviderName", "ProviderName", "Provider"),
        "model": ("x_Model",),
        "service": ("ServiceName",),
        "sku": ("SkuMeter", "SkuId"),
        "description": ("ChargeDescription",),
        "currency": ("BillingCurrency",),
    },
    tags=("Tags",),
    categories=_CATEGORIES,
)

CUR: Final = BillFormat(
    name="cur",
    needs=("line_item_unblended_cost", "line_item_usage_start_date", "line_item_line_item_type"),
    columns={
        "cost": ("line_item_unblended_cost",),
        "day": ("line_item_usage_start_date",),
        "period": ("bill_billing_period_start_date",),
        "category": ("line_item_line_item_type",),
        "issuer": ("bill_invoicing_entity", "bill_billing_entity"),
        "account": ("bill_payer_account_id",),
        "provider": ("line_item_product_code",),
        "service": ("line_item_product_code",),
        "sku": ("line_item_usage_type",),
        "description": ("line_item_line_item_description",),
        "currency": ("line_item_currency_code",),
    },
    tags=("resource_tags", "tags"),
    categories={
        "usage": "Usage",
        "discountedusage": "Usage",
        "savingsplancoveredusage": "Usage",
        # Takes back what the plan covers: the unblended usage is nothing then.
        "savingsplannegation": "Usage",
        "fee": "Purchase",
        "rifee": "Purchase",
        "savingsplanupfrontfee": "Purchase",
        "savingsplanrecurringfee": "Purchase",
        "tax": "Tax",
        "credit": "Credit",
        "refund": "Adjustment",
        "discount": "Adjustment",
        "bundleddiscount": "Adjustment",
        "edpdiscount": "Adjustment",
        "privateratediscount": "Adjustment",
        "rivolumediscount": "Adjustment",
        "sppdiscount": "Adjustment",
    },
    constant={"issuer": "AWS", "currency": "USD"},
)

SIMPLE: Final = BillFormat(
    name="simple",
    needs=("date", "cost"),
    columns={
        "cost": ("cost",),
        "day": ("date",),
        "category": ("category",),
        "issuer": ("issuer", "provider"),
        "account": ("account",),
        "provider": ("provider",),
        "model": ("model",),
        "service": ("service",),
        "sku": ("sku",),
        "tenant": ("tenant",),
        "feature": ("feature",),
        "description": ("description",),
        "currency": ("currency",),
    },
    categories=_CATEGORIES | {"": "Usage", "fee": "Purchase", "discount": "Adjustment", "rounding": "Adjustment"},
    constant={"currency": "USD"},
)

FORMATS: Final = {each.name: each for each in (FOCUS, CUR, SIMPLE)}

PROVIDERS: Final = {
    "amazon web services": "aws",
    "amazon web services, inc.": "aws",
    "amazonbedrock": "aws.bedrock",
    "google cloud": "gcp",
    "google cloud platform": "gcp",
    "microsoft": "azure",
    "microsoft azure": "azure",
}
"""Bills' names of providers, in lower case → the ledger's. Others are the ledger's own, in lower case."""

CUR_PROVIDER: Final = "aws"
"""Who sells what a CUR names a product of that `PROVIDERS` does not have."""

_LEGACY: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[/:]")


def plain_name(column: str) -> str:
    """A legacy CUR's name of a column as CUR 2.0 writes it; a name without ``/`` stays as it is."""
    return _LEGACY.sub("_", column).lower() if "/" in column else column


def format_of(columns: Iterable[str]) -> BillFormat:
    """The format that has these columns (as `plain_name` spells them).

    Raises:
        ConfigError: none has; names what each would need.
    """
    found = set(columns)
    for each in FORMATS.values():
        if found.issuperset(each.needs):
            return each
    needs = "; ".join(f"{each.name}: {', '.join(each.needs)}" for each in FORMATS.values())
    raise ConfigError(f"Its columns are those of no known bill ({needs}).", "See `tollspan bills import --help`.")
