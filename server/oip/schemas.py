"""Bodies of the Open Inference Protocol. Answers of `infer` are built in `answering`.

What clients send may carry parameters that only other servers know: those are passed over.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_DIMENSION = 2**31 - 1

Dimension = Annotated[int, Field(ge=0, le=MAX_DIMENSION)]


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputParameters(_Sent):
    binary_data_size: Annotated[int | None, Field(ge=0, description="Bytes behind the JSON.")] = None
    shared_memory_region: Annotated[str | None, Field(description="Refused.")] = None


class InputTensor(_Sent):
    """The images of a request; see docs/open-inference-protocol.md for the datatypes and their shapes."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    shape: Annotated[list[Dimension], Field(max_length=8, examples=[[1]])]
    parameters: InputParameters = InputParameters()
    data: Annotated[Any, Field(description="Row-major, flat or nested; BYTES as base64.")] = None


class OutputParameters(_Sent):
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0, description="How many classes, best first.")] = 0
    shared_memory_region: Annotated[str | None, Field(description="Refused.")] = None


class RequestedOutput(_Sent):
    name: Annotated[str, Field(examples=["probabilities"])]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Sent):
    binary_data_output: Annotated[bool, Field(description="Binary outputs where none says else.")] = False
    timeout: Annotated[int, Field(ge=0, description="Deadline in microseconds; 0 for the server's.")] = 0


class InferRequest(_Sent):
    """The JSON of an inference. Binary tensors follow it, see `Inference-Header-Content-Length`."""

    id: str = ""
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[RequestedOutput] = Field(default_factory=list)


class IndexRequest(_Sent):
    ready: Annotated[bool, Field(description="Only models that are ready.")] = False


class LoadRequest(_Sent):
    """`config` and files are refused: adapters are uploaded to `/v1/tasks/{task}/versions`."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class TensorMetadata(_Told):
    name: str
    datatype: str
    shape: Annotated[list[int], Field(description="-1: any size.")]


class ServerMetadata(_Told):
    name: str
    version: str
    extensions: tuple[str, ...]


class ModelMetadata(_Told):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class Live(_Told):
    live: Literal[True] = True


class ServerReady(_Told):
    ready: Literal[True] = True


class ModelReady(_Told):
    name: str
    ready: Literal[True] = True


class OutputTensor(_Told):
    """`data` is left out where `parameters.binary_data_size` tells how many bytes behind the JSON are it."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | list[str] | None = None


class InferResponse(_Told):
    """`parameters.digest` is the sha256 of the adapter file that answered."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: tuple[OutputTensor, ...]


class IndexEntry(_Told):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class DurationStatistics(_Told):
    count: int
    ns: int


class InferenceStatistics(_Told):
    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


class ModelStatistics(_Told):
    """Of this replica. `execution_count`: a forward that is shared counts by the share of its images."""

    name: str
    version: str
    last_inference: Annotated[int, Field(description="Milliseconds since 1970; 0 for never.")]
    inference_count: Annotated[int, Field(description="Images answered.")]
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: Annotated[tuple[()], Field(description="Empty: forwards are not of one model.")] = ()


class AllStatistics(_Told):
    model_stats: tuple[ModelStatistics, ...]
