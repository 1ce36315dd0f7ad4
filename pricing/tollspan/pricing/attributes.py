"""Attribute names on the wire: the one table where instrumentation and processor meet.

The instrumentation writes these names, the processor's normalizer reads them, and neither imports the other. GenAI
names are those of the OpenTelemetry GenAI semantic conventions (all still "Development"); what has no convention stands
under ``tollspan.``. A name that upstream renames is renamed here and kept as an older spelling in the processor's
dialect tables.
"""

from __future__ import annotations

from typing import Final

# -- who it was for: tags, also the W3C baggage keys -------------------------------------------------------------------
TENANT: Final = "tollspan.tenant"
SENDER_TENANT: Final = "tollspan.sender.tenant"
"""On resources, put there by the service: the tenant of the sender who was logged in. Above what the spans say."""
TEAM: Final = "tollspan.team"
FEATURE: Final = "tollspan.feature"
WORKFLOW: Final = "tollspan.workflow"
VARIANT: Final = "tollspan.variant"
AGENT: Final = "tollspan.agent"
ROUTE: Final = "tollspan.route"
"""What `AGENT_NAME` and `HTTP_ROUTE` say on spans of agents and servers, handed to the calls inside them."""

TAGS: Final[dict[str, str]] = {
    "tenant": TENANT,
    "team": TEAM,
    "feature": FEATURE,
    "workflow": WORKFLOW,
    "variant": VARIANT,
    "agent": AGENT,
    "route": ROUTE,
}
"""Tag name, as in ``tag(tenant=...)`` → span attribute and baggage key."""

# -- GenAI conventions -------------------------------------------------------------------------------------------------
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
AGENT_NAME: Final = "gen_ai.agent.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds (double) from the start of the call to the first chunk of its stream."""
CONVERSATION_ID: Final = "gen_ai.conversation.id"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
"""Content: on the span as JSON, and only where the user has asked for it."""

USAGE_COST_AMOUNT: Final = "gen_ai.usage.cost.amount"
"""What the call cost by the instrumentation's own price book (double); proposed in semantic-conventions-genai#443. Not
what a provider reported, and never read as that: `USAGE_COST_SOURCE` says ``local``."""
USAGE_COST_CURRENCY: Final = "gen_ai.usage.cost.currency"
USAGE_COST_SOURCE: Final = "gen_ai.usage.cost.source"

USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""All input tokens, cached ones included (the convention's meaning, whatever the provider's)."""
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
"""All output tokens, reasoning included."""
USAGE_CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
USAGE_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
USAGE_AUDIO_INPUT_TOKENS: Final = "gen_ai.usage.audio.input_tokens"
USAGE_AUDIO_OUTPUT_TOKENS: Final = "gen_ai.usage.audio.output_tokens"
USAGE_IMAGE_INPUT_TOKENS: Final = "gen_ai.usage.image.input_tokens"
USAGE_AUDIO_CACHE_READ_TOKENS: Final = "gen_ai.usage.audio.cache_read.input_tokens"
USAGE_IMAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.image.output_tokens"
USAGE_IMAGE_CACHE_READ_TOKENS: Final = "gen_ai.usage.image.cache_read.input_tokens"
USAGE_VIDEO_INPUT_TOKENS: Final = "gen_ai.usage.video.input_tokens"
USAGE_VIDEO_OUTPUT_TOKENS: Final = "gen_ai.usage.video.output_tokens"
USAGE_VIDEO_CACHE_READ_TOKENS: Final = "gen_ai.usage.video.cache_read.input_tokens"
"""The conventions (semantic-conventions-genai#440) name audio and image; video follows their pattern."""

OPENAI_REQUEST_SERVICE_TIER: Final = "openai.request.service_tier"
OPENAI_RESPONSE_SERVICE_TIER: Final = "openai.response.service_tier"
OPENAI_API_TYPE: Final = "openai.api.type"
ANTHROPIC_RESPONSE_SERVICE_TIER: Final = "anthropic.response.service_tier"
"""Tier as served, by the name that Anthropic's own SDK gives it."""

ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# -- resource attributes that pricing selects by -----------------------------------------------------------------------
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
ENVIRONMENT: Final = "deployment.environment.name"
CLOUD_PROVIDER: Final = "cloud.provider"
CLOUD_REGION: Final = "cloud.region"
CLOUD_ZONE: Final = "cloud.availability_zone"
"""Tells, with the two above, how far the process is from those that it talks to. No price is selected by it."""
HOST_TYPE: Final = "host.type"
CLOUD_PLATFORM: Final = "cloud.platform"
HOST_PURCHASE: Final = "tollspan.host.purchase"
"""How the machine is paid for: ``on_demand``, ``spot``, ``reserved_1y`` ..."""
RESIDENCY: Final = "tollspan.residency"
"""Where the provider was told to process, or says that it did: ``us``, ``eu`` ...; on the span or on the resource."""

# -- ours: execution on own hardware, feature stores -------------------------------------------------------------------
OPERATION: Final = "tollspan.operation"
"""For spans outside the GenAI conventions: one of the three below."""
OPERATION_INFERENCE: Final = "inference"
OPERATION_MODEL_LOAD: Final = "model_load"
OPERATION_FEATURE_READ: Final = "feature_read"
OPERATION_FEATURE_WRITE: Final = "feature_write"
OPERATION_VECTOR_QUERY: Final = "vector_query"
OPERATION_CACHE_LOOKUP: Final = "cache_lookup"
"""Of any kind but a model call: billed by the usage that the span tells."""
OPERATION_CAPACITY: Final = "capacity"
"""A minute of a device, or of the CPUs, that a process holds: no call, and billed by what of it was idle."""

PROVIDER: Final = "tollspan.provider"
"""Runtime that executed the call where no GenAI provider did: ``pytorch``, ``onnxruntime``, ``feast``."""
MODEL: Final = "tollspan.model"
"""Model identity: class name, ONNX graph or file name; for a feature store the feature service or project."""
MODEL_VERSION: Final = "tollspan.model.version"
MODEL_SOURCE: Final = "tollspan.model.source"
"""Where a loaded model came from: ``file``, ``buffer`` (the program's own memory), ``hub:owner/name@revision`` (the
Hugging Face hub, or its cache on this machine), ``github:owner/name@branch``, or a URL without its query."""
MODEL_FORMAT: Final = "tollspan.model.format"
"""``onnx``, ``ort``, or ``ep_context`` (ONNX that carries what an execution provider has compiled before);
``pytorch`` (``torch.save``), ``torchscript``, ``pt2`` (``torch.export``), ``safetensors``, ``gguf``. Of several the one
that most bytes are of."""
MODEL_SIZE: Final = "tollspan.model.size"
"""Bytes of a loaded model as stored (integer), wherever they came from; what was read of storage is a usage."""
MODEL_MAPPED: Final = "tollspan.model.mapped"
"""Bytes of a loaded model's files (integer) that were mapped into memory: they are read of storage as they are touched,
how many of them and when is not known, and no usage."""
MODEL_DOWNLOADED: Final = "tollspan.model.downloaded"
"""Bytes (integer) that came over the network for a load, of the files of the model; 0 where all of them were there."""
MODEL_CACHED: Final = "tollspan.model.cached"
"""Bytes (integer) of files from a hub that were found on this machine and did not have to come."""
DEVICE_TYPE: Final = "tollspan.device.type"
"""``cpu``, ``cuda``, ``mps`` ...: where the model ran."""
DEVICE_NAME: Final = "tollspan.device.name"
"""Product name as the driver gives it; selects the price of GPU seconds."""
DEVICE_ID: Final = "hw.id"
"""Which device it was, as the driver identifies it: a UUID, of the slice where the device is partitioned."""
DEVICE_SLICE: Final = "tollspan.device.slice"
"""Slice of a partitioned device (MIG), as the driver names it: ``1g.10gb``."""
MODEL_DTYPE: Final = "tollspan.model.dtype"
"""Element type of the model's data, as NumPy spells it (``float32``, ``bfloat16``): of its parameters, or of its first
floating point input or output where the runtime does not tell of parameters."""
BATCH_SIZE: Final = "tollspan.batch.size"
SEQUENCE_LENGTH: Final = "tollspan.sequence.length"
"""Positions of each row of a batch of token ids, padding included."""
POSITIONS_IN: Final = "tollspan.positions.input"
"""Token positions that a model on own hardware worked on, all rows, padding included. Not a usage: they have no price,
the device's seconds have."""
POSITIONS_OUT: Final = "tollspan.positions.output"
"""Token positions that it made, all rows, those after a row's end included."""
PIPELINE_TASK: Final = "tollspan.pipeline.task"
"""Task of a pipeline of models, as its library names it: ``text-generation``, ``feature-extraction`` ..."""
COLD_START: Final = "tollspan.cold_start"
"""True on the first call of a model in this process, absent otherwise."""
COLD_START_SECONDS: Final = "tollspan.cold_start.seconds"
"""Seconds (double) from the start of the process to the start of its first inference on own hardware, on that
inference alone; absent where the system does not tell when a process began."""
RETRIES: Final = "tollspan.retries"
"""HTTP attempts that the client made again inside this call; absent when the client does not tell."""
PROCESSING: Final = "tollspan.processing"
"""``batch`` or ``online``: how the provider was asked to process the call, where its service tier does not say it."""
CALL_SENT: Final = "tollspan.call.sent"
"""False on a call that failed before any request went out (a missing argument, say): the provider was asked for
nothing. Absent otherwise, also where it is not known."""
USAGE_DEFERRED: Final = "tollspan.usage_deferred"
"""True on a call that only asked for work: what it uses is told later, and stands on a span of its own (a background
response, a video)."""
USAGE_ELSEWHERE: Final = "tollspan.usage_elsewhere"
"""True on another instrumentation's span whose usage stands on one of ours that cannot be beneath it: a roll-up."""
REQUEST_FINGERPRINT: Final = "tollspan.request.fingerprint"
"""Keyed hash of the request (32 hexadecimal digits): equal requests have equal ones, and it tells nothing of them."""
STREAM_ABANDONED: Final = "tollspan.stream.abandoned"
"""True on a call whose stream was closed or dropped before its end was read: what the provider counted is not known."""
GPU_TIME_SOURCE: Final = "tollspan.gpu.time.source"
"""What measured the device's time: ``cuda_event``, ``hip_event``."""
GPU_TIME_STATUS: Final = "tollspan.gpu.time.status"
"""``ok``; or why there is no device time: ``unmeasured`` (no clock for this device), ``skipped`` (a graph was being
captured), ``dropped`` (too many calls wait for their time), ``timeout`` (the process ended first), ``error``."""
SHARE_RULE: Final = "tollspan.share.rule"
"""On one request's part of a batch that served many: what the parts were weighted by (``items``, ``tokens`` ...). The
part is an estimate; the parts of a batch add up to what was measured."""
GPU_WINDOW: Final = "tollspan.gpu.window"
"""Seconds (double) from when the device reached the call to when it was done with it, pauses between its kernels and
other streams' work included. ``tollspan.usage.gpu.seconds`` is the call's share of that: an instant that several calls
were open in is split among them."""
CAPACITY_ALLOCATED: Final = "tollspan.capacity.allocated_seconds"
"""Seconds (double, whole nanoseconds) of a device, or of virtual CPUs, that the process held in the span's time."""
CAPACITY_BUSY: Final = "tollspan.capacity.busy_seconds"
"""Of these, for a device: the sum of what its calls were given, sampled or not; for CPUs: the process's CPU time.
Absent where it is not known. The rest is the span's usage ``gpu.idle_seconds`` or ``cpu.idle_seconds``."""
CAPACITY_STATUS: Final = "tollspan.capacity.status"
"""``ok``; or why the idle time is absent: the `GPU_TIME_STATUS` of a call whose device time is not known, ``pending``
(a call had not ended when the minute had to be told), ``shared`` (several processes are on the device, and nobody said
what part is this one's). ``over``: calls were given more than was held, by two clocks of one device."""
CAPACITY_SHARE: Final = "tollspan.capacity.share"
"""What part of the device is allocated to the process, as the user says it (``1/4``); absent: the whole of it. A slice
of a partitioned device is a device of its own here: its price is the part."""
GPU_SHARED: Final = "tollspan.gpu.shared"
"""Whether other processes were seen on the device (MPS, time-slicing, or just several), on spans of calls and of
minutes; absent where nobody can tell. Time on a shared device has the others' turns in it: an upper bound."""
CAPACITY_UTILIZED: Final = "tollspan.capacity.utilized_seconds"
"""Seconds (double) in which the device had any kernel, of all processes, by samples of NVML. An indicator of what is
not on any span, and no part of a sum."""
CAPACITY_CPUS: Final = "tollspan.capacity.cpus"
"""Virtual CPUs (double) allotted to the process: its cgroups' quota, its affinity, or all of the machine."""
CPU_TIME_SOURCE: Final = "tollspan.cpu.time.source"
"""``process`` (all threads; only call in flight) or ``thread`` (the calling thread alone: a lower bound)."""
FEATURE_ROWS: Final = "tollspan.feature.rows"
FEATURE_COUNT: Final = "tollspan.feature.count"
FEATURE_ACCESS: Final = "tollspan.feature.access"
"""How a feature store was used: ``online``, ``historical``, ``push``, ``write`` or ``materialize``."""
FEATURE_STORE: Final = "tollspan.feature.store"
"""Kind of the store that was read or written: ``sqlite``, ``redis``, ``bigquery`` ..."""
FEATURE_VIEWS: Final = "tollspan.feature.views"
"""Feature views that were read or written (strings, sorted)."""
FEATURE_ENTITIES: Final = "tollspan.feature.entities"
"""Names of the columns that rows were asked for by (strings, sorted)."""
FEATURE_HITS: Final = "tollspan.feature.hits"
"""Values that were found. This and the next three add up to rows × features where the store tells all of them."""
FEATURE_NULLS: Final = "tollspan.feature.nulls"
"""Values that were found to be null."""
FEATURE_MISSES: Final = "tollspan.feature.misses"
"""Values that were not found: the store does not know the row."""
FEATURE_EXPIRED: Final = "tollspan.feature.expired"
"""Values that were found too old to be given."""
FEATURE_AGE_OLDEST: Final = "tollspan.feature.age.oldest"
FEATURE_AGE_MEDIAN: Final = "tollspan.feature.age.median"
"""Seconds (double) from the event time of a value that was found to the end of the read."""
READ_KEYS: Final = "tollspan.read.keys"
"""Keyed hashes of the rows that were asked for (strings of 16 hexadecimal digits), where a fingerprint key is set:
equal ones in one trace are the same row, read again."""
VECTOR_TOP_K: Final = "tollspan.vector.top_k"
VECTOR_RETURNED: Final = "tollspan.vector.returned"
"""Records that a vector query returned, of all its queries together."""
CACHE_KIND: Final = "tollspan.cache.kind"
"""``exact`` or ``semantic``."""
CACHE_RESULT: Final = "tollspan.cache.result"
"""``hit`` or ``miss``; absent where that is not known."""
CACHE_SIMILARITY: Final = "tollspan.cache.similarity"
CACHE_SAVED_COST: Final = "tollspan.cache.saved.cost"
"""What the call that a hit made needless would have cost: a decimal string, USD. No part of any cost."""
CACHE_SAVED_MODEL: Final = "tollspan.cache.saved.model"
CACHE_SAVED_INPUT_TOKENS: Final = "tollspan.cache.saved.input_tokens"
CACHE_SAVED_OUTPUT_TOKENS: Final = "tollspan.cache.saved.output_tokens"
"""Tokens of the call that a hit made needless. No usage."""
EXECUTION_PROVIDERS: Final = "tollspan.execution_providers"
"""Execution providers that a session of ONNX Runtime got, in their order of precedence."""
EXECUTION_PROVIDERS_ASKED: Final = "tollspan.execution_providers.asked"
"""Those that the program asked for, where it named any: one that is not among the ones it got is not there."""

USAGE_PREFIX: Final = "tollspan.usage."
"""``tollspan.usage.<meter>``: a quantity of any meter of `tollspan.pricing.meters`, in the meter's unit. Seconds are
doubles that hold whole nanoseconds; everything else is an integer. Users may set these on their own spans. Beside the
token counts of the conventions they must agree with them; ``tokens.input.cache_write.<lifetime>`` are parts of the
conventions' total of cache writes."""

USAGE_INVALID: Final = "tollspan.usage_invalid"
"""Why the usage that a provider reported cannot be right, where the instrumentation found that out
(`tollspan.pricing.usage_objects`): the call is then ``invalid`` for that reason."""


USAGE_ESTIMATED: Final = "tollspan.usage_estimated"
"""True where usage on the span is an estimate of the instrumentation's that the user has asked for: tokens counted in
the text, or one request's share of a batch. The ledger's row says ``usage_estimated`` among its reasons."""


def usage(meter: str) -> str:
    """Span attribute that carries ``meter``, e.g. ``tollspan.usage.cpu.seconds``."""
    return USAGE_PREFIX + meter


COST_REPORTED: Final = "tollspan.cost.reported"
"""What the provider itself says that the call cost, USD: a string, or a double. Kept beside our own figure, and never
used for it."""

COST_LOCAL: Final = "tollspan.cost.local"
"""`USAGE_COST_AMOUNT` to the last digit: a decimal string, USD."""

# -- what becomes of the spans -----------------------------------------------------------------------------------------
SAMPLING_KEEP: Final = "tollspan.sampling.keep"
"""On any span of a trace: the program asks that the trace be kept (true) or dropped (false). True wins."""
SAMPLING_NOTE: Final = "tollspan.sampling.note"
"""Why, in the program's words. Not `SAMPLING_REASON`, which the processor writes on what it sends on."""
SLIM: Final = "tollspan.slim"
"""True on a span that came although its trace was not sampled where it began: it has what pricing and attribution need
and nothing else, it is in the ledger, and it is no body."""
CONTENT: Final = "tollspan.content"
"""``removed`` on a kept span that lost its content (prompts, completions, tool arguments and results …) to a rule or to
the budget: what remains is its structure, usage and tags. Its dropped counts say how much went."""

# -- written by the processor on kept spans ----------------------------------------------------------------------------
# Only on what `tollspan.processor.forward` sends on, never read as usage or as a cost, and replaced by the next
# processor that a span comes through: they are the figures of the one that sent it last.
COST_AMOUNT: Final = "tollspan.cost.amount"
"""What the span cost, to the last digit: a decimal string. Absent where it is not known (``unpriced``, ``rollup``)."""
COST_APPROXIMATE: Final = "tollspan.cost.approximate"
"""The double next to `COST_AMOUNT`, for dashboards that add only numbers. Sums of it are approximate; the ledger's are
not."""
COST_CURRENCY: Final = "tollspan.cost.currency"
COST_STATUS: Final = "tollspan.cost.status"
"""``priced``, ``free``, ``included``, ``partial`` (`COST_AMOUNT` is a lower bound), ``unpriced``, ``invalid``,
``rollup`` (billed on a span beneath), ``not_billed``."""
COST_REASONS: Final = "tollspan.cost.reasons"
"""Why a status is what it is, joined by commas; absent where there is nothing to say."""
COST_COMPONENT_PREFIX: Final = "tollspan.cost.component."
"""``tollspan.cost.component.<component of the bill>``: the part of `COST_AMOUNT` that is its own, a decimal string."""
COST_BOOK_VERSION: Final = "tollspan.cost.book_version"
SAMPLING_ADJUSTED_COUNT: Final = "tollspan.sampling.adjusted_count"
"""How many spans this one stands for (double): the inverse of the probability that ``ot=th`` in its tracestate says."""
SAMPLING_REASON: Final = "tollspan.sampling.reason"
"""Why its trace was kept: ``error``, ``probability`` ..."""
