"""A network that was cut is asked again, a certificate that is wrong is not."""

import httpx
import pytest
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.retry import make_simple_http_retry_invoker

from fedsparse.flower_pulls import outlast_cuts


@pytest.fixture
def calls(monkeypatch):
    """Let a client's connection fail once with a text, then work; count how often it was tried."""

    def of(text):
        tried = []

        def send(client, context):
            tried.append(context)
            if len(tried) == 1:
                raise httpx.ConnectError(text)
            return "answer"

        monkeypatch.setattr(ProtobufClient, "_send", send)
        outlast_cuts()
        outlast_cuts()
        retry = make_simple_http_retry_invoker()
        retry.wait_function = lambda seconds: None
        client = ProtobufClient("https://127.0.0.1:1")
        try:
            return retry.invoke(client._send, "request"), len(tried)
        finally:
            client.close()

    return of


@pytest.mark.parametrize(
    "text",
    [
        "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)",
        "_ssl.c:989: The handshake operation timed out",
        "[Errno 104] Connection reset by peer",
    ],
)
def test_a_cut_within_a_handshake_is_outlasted(calls, text):
    assert calls(text) == ("answer", 2)


@pytest.mark.parametrize(
    "text", ["[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "[SSL: WRONG_VERSION]"]
)
def test_a_wrong_certificate_is_not(calls, text):
    with pytest.raises(httpx.ConnectError, match="SSL"):
        calls(text)
