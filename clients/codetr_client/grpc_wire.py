"""KServe's gRPC protocol: questions as messages, answers from messages, and how a channel is made."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from codetr_client.errors import CodetrError, ServerAnswerError
from codetr_client.wire import MAX_ANSWER_BYTES, Answer, Ask, Endpoint, Tensors, tensor_from_bytes

METHODS = {
    "infer": "ModelInfer",
    "ready": "ModelReady",
    "metadata": "ModelMetadata",
    "config": "ModelConfig",
    "statistics": "ModelStatistics",
}
# grpcio waits up to two minutes before it connects again, and lets calls fail meanwhile without trying.
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
# Of a name that stands for several servers, each request goes to the next one; a server that goes is asked for at once.
SPREAD = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)


def library() -> tuple[Any, Any, Any]:
    """Return the modules grpc, KServe's messages and its stubs; raises CodetrError if they are not installed."""
    try:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc
    except ImportError as error:
        raise CodetrError(f"gRPC needs tritonclient ({error}): pip install 'tritonclient[grpc]'") from error
    return grpc, service_pb2, service_pb2_grpc


def channel(module: Any, grpc: Any, endpoint: Endpoint) -> Any:
    """Return a channel of `module`: grpc, or grpc.aio.

    No proxy of the environment is used, for any host: what lies between is in the url, on both protocols.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # clients share no connection, and no memory of a failed one
        *RECONNECT,
    ]
    if endpoint.options.keepalive is not None:
        milliseconds = int(endpoint.options.keepalive * 1000)
        options += [
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", min(milliseconds, 20_000)),
            ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
        ]
    if endpoint.resolver:
        options += SPREAD
    tls = endpoint.tls
    if tls is None:
        return module.insecure_channel(endpoint.target, options)
    ca, certificate, key = tls.read()
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return module.secure_channel(endpoint.target, credentials, options)


def request(service_pb2: Any, ask: Ask) -> Any:
    """Return the message of one question."""
    if ask.what == "infer":
        return _infer_request(service_pb2, ask)
    kind = getattr(service_pb2, f"{METHODS[ask.what]}Request")
    return kind() if ask.what == "statistics" else kind(name=ask.model, version=ask.version)


def _infer_request(service_pb2: Any, ask: Ask) -> Any:
    message = service_pb2.ModelInferRequest(model_name=ask.model)
    for name, value in ask.parameters.items():
        if isinstance(value, int):
            message.parameters[name].int64_param = value
        else:
            message.parameters[name].double_param = value
    message.inputs.add(name="image", datatype="BYTES", shape=[len(ask.payloads), 1])
    message.raw_input_contents.append(
        b"".join(part for payload in ask.payloads for part in (struct.pack("<I", len(payload)), payload))
    )
    return message


def metadata(endpoint: Endpoint, headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers of a call as gRPC's metadata."""
    return list({**endpoint.options.headers, **headers}.items())


def read(endpoint: Endpoint, ask: Ask, message: Any) -> Any:
    """Return what an answer says: an `Answer` of "infer", True of "ready", a dictionary else.

    Raises ServerAnswerError for tensors that cannot be, ModelNotReadyError for "ready" that is not.
    """
    if ask.what == "infer":
        return Answer(_tensors(message), message.model_version)
    if ask.what == "ready":
        if not message.ready:
            raise endpoint.not_ready(ask.model)
        return True
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def _tensors(message: Any) -> Tensors:
    if len(message.raw_output_contents) != len(message.outputs):
        raise ServerAnswerError(
            f"the answer has {len(message.outputs)} outputs and the bytes of {len(message.raw_output_contents)}"
        )
    pairs = zip(message.outputs, message.raw_output_contents, strict=True)
    return {
        output.name: tensor_from_bytes(output.name, output.datatype, output.shape, content) for output, content in pairs
    }
