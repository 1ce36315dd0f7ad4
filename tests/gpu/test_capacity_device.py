"""What a real device was held for, and what of it calls were given; beside it what NVML says (`test_device_time`)."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import capacity_nvml
from tollspan.instrumentation.capacity import CapacityInstrumentor
from tollspan.instrumentation.device_clock import GPU_SECONDS
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.instrumentation.torch_hardware import device_attributes
from tollspan.pricing import attributes

torch = pytest.importorskip("torch")
nn = torch.nn


def test_a_device_is_busy_or_idle_and_nothing_else(figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_CAPACITY", "gpu")
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CapacityInstrumentor().instrument(tracer_provider=provider)
    TorchInstrumentor().instrument(tracer_provider=provider)
    try:
        model = nn.Sequential(*(nn.Linear(8192, 8192) for _ in range(8))).to("cuda", torch.bfloat16).eval()
        with torch.inference_mode():
            for _ in range(200):
                model(torch.ones(4096, 8192, device="cuda", dtype=torch.bfloat16))
        torch.cuda.synchronize()
        assert provider.force_flush()
    finally:
        TorchInstrumentor().uninstrument()
        CapacityInstrumentor().uninstrument()
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    minutes = [told for told in spans if told.get(attributes.OPERATION) == attributes.OPERATION_CAPACITY]
    given = sum(round(told[GPU_SECONDS] * 1e9) for told in spans if GPU_SECONDS in told)
    busy = sum(round(told[attributes.CAPACITY_BUSY] * 1e9) for told in minutes)
    idle = sum(round(told[attributes.usage("gpu.idle_seconds")] * 1e9) for told in minutes)
    allocated = sum(round(told[attributes.CAPACITY_ALLOCATED] * 1e9) for told in minutes)
    figures["capacity"] = {"allocated_s": allocated / 1e9, "busy_s": busy / 1e9, "minutes": minutes}
    assert given == busy > 0
    assert busy + idle == allocated


def test_nvml_knows_the_device_by_the_identity_that_torch_gives(figures: dict[str, Any]) -> None:
    pytest.importorskip("pynvml")
    device = capacity_nvml.device(device_attributes("cuda", 0)[attributes.DEVICE_ID])
    assert device is not None
    figures["nvml"] = {"utilization_percent": device.utilization(), "shared": device.shared()}
