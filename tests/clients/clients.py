"""Clients of a platform's customers, against a gateway that asks Tollgate.

    clients.py CLIENT BASE_URL CALLS

Each client makes CALLS calls, one after another, and follows the retry advice of its platform's documentation.
It prints one JSON object: the number of successful calls, of refusals, the time waited, the reason for giving up, if
it did, and the limits reported to it. A crash is an exit code.
"""

import json
import math
import random
import sys
import time
from unittest import mock

import anthropic
import httpx
import openai

MOST_RETRIES = 5
HELLO = [{"role": "user", "content": "Hello"}]


class GaveUp(Exception):
    """The client will not retry."""


class Account:
    """The record of one client."""

    def __init__(self):
        self.refused = 0
        self.waited = 0.0
        self.seen = []

    def sleep(self, seconds):
        self.waited += seconds
        time.sleep(seconds)


def venice(base, account):
    """Exponential backoff, except on 429: there until the Unix time of x-ratelimit-reset-requests."""
    for attempt in range(MOST_RETRIES):
        answer = httpx.post(f"{base}/chat/completions", json={"model": "zai-org-glm-5-1"})
        if answer.status_code == 429:
            account.refused += 1
            account.sleep(max(0.0, int(answer.headers["x-ratelimit-reset-requests"]) - time.time()))
        elif answer.status_code in (500, 503):
            account.sleep(2**attempt)
        else:
            answer.raise_for_status()
            return
    raise GaveUp("retries used up")


def tiered_chat(base, account):
    """Exponential backoff with jitter whenever the error speaks of a `rate_limit`; anything else is raised."""
    for attempt in range(MOST_RETRIES):
        answer = httpx.post(f"{base}/v1/chat/completions", json={"model": "any"})
        if answer.status_code == 200:
            return
        account.refused += 1
        if "rate_limit" not in answer.text:
            raise GaveUp(answer.text)
        account.sleep(2**attempt + random.uniform(0, 1))
    raise GaveUp("retries used up")


def deapi(base, account):
    """On 429 the integer of Retry-After, and no retry when the daily limit was hit."""
    for attempt in range(MOST_RETRIES):
        answer = httpx.post(f"{base}/txt2img", json={"prompt": "a gate"})
        if answer.status_code != 429:
            answer.raise_for_status()
            return
        account.refused += 1
        wait = int(answer.headers["Retry-After"])
        if answer.headers.get("X-RateLimit-Type", "minute") == "daily":
            raise GaveUp("daily")
        account.sleep(max(wait, 2**attempt + random.uniform(0, 1)))
    raise GaveUp("retries used up")


def sdk(base, **settings):
    return openai.OpenAI(base_url=f"{base}/v1", api_key="not-read-by-the-gateway", **settings)


def openai_sdk(base, account):
    """The official SDK with its own retries."""
    asked = []
    hooks = {"response": [lambda answer: asked.append(answer.status_code)]}
    client = sdk(base, max_retries=2, http_client=openai.DefaultHttpxClient(event_hooks=hooks))
    started = time.monotonic()
    try:
        answer = client.chat.completions.create(model="any", messages=HELLO)
        if answer.choices[0].message.content != "Hello yourself.":
            raise GaveUp(f"another answer: {answer}")
    except openai.RateLimitError as error:
        raise GaveUp(error.code) from error
    finally:
        refused = asked.count(429)
        account.refused += refused
        account.waited += time.monotonic() - started if refused else 0.0


def openai_stream(base, account):
    """The official SDK, which takes its answer as a stream: how many parts it had, and the requests used by then."""
    chat = sdk(base, max_retries=0).chat.completions
    answer = chat.with_raw_response.create(model="any", messages=HELLO, stream=True)
    parts = [part.choices[0].delta.content for part in answer.parse()]
    if parts != [f"{number} " for number in range(len(parts))]:
        raise GaveUp(f"another answer: {parts}")
    account.seen.append([len(parts), answer.headers["X-RateLimit-Used"]])


def openai_routes(base, account):
    """The official SDK's ways to chat, to make a picture, to speak and to listen: what each is counted as, and the use."""
    client = sdk(base, max_retries=0)
    for answer in (
        client.chat.completions.with_raw_response.create(model="any", messages=HELLO),
        client.images.with_raw_response.generate(model="any", prompt="a gate"),
        client.audio.speech.with_raw_response.create(model="any", voice="alloy", input="Hello"),
        client.audio.transcriptions.with_raw_response.create(model="any", file=("hello.wav", b"RIFF")),
    ):
        account.seen.append([answer.headers["X-RateLimit-Resource"], answer.headers["X-RateLimit-Used"]])


# The windows of the models whose only call is used up.
FULL = ("30s", "61s", "130s", "day")


def waits(base, account, refusal, ask):
    """The seconds that an SDK waits before its only retry, for each model; it waits in name only."""
    for model in FULL:
        httpx.post(f"{base}/v1/messages", json={"model": model}).raise_for_status()
        slept = []
        with mock.patch("time.sleep", slept.append):
            try:
                ask(model)
                raise GaveUp("it was admitted")
            except refusal:
                account.refused += 1
        account.seen.append([model, [math.ceil(seconds) for seconds in slept]])


def openai_waits(base, account):
    chat = sdk(base, max_retries=1).chat.completions
    waits(base, account, openai.RateLimitError, lambda model: chat.create(model=model, messages=HELLO))


def anthropic_waits(base, account):
    messages = anthropic.Anthropic(base_url=base, api_key="not-read-by-the-gateway", max_retries=1).messages
    ask = lambda model: messages.create(model=model, messages=HELLO, max_tokens=9)
    waits(base, account, anthropic.RateLimitError, ask)


CLIENTS = {
    "venice": venice,
    "tiered-chat": tiered_chat,
    "deapi": deapi,
    "openai": openai_sdk,
    "openai-stream": openai_stream,
    "openai-routes": openai_routes,
    "openai-waits": openai_waits,
    "anthropic-waits": anthropic_waits,
}


def main(client, base, calls):
    account, succeeded, gave_up = Account(), 0, None
    try:
        for _ in range(int(calls)):
            CLIENTS[client](base, account)
            succeeded += 1
    except GaveUp as why:
        gave_up = str(why)
    outcome = {"succeeded": succeeded, "refused": account.refused, "waited": round(account.waited, 3)}
    print(json.dumps(outcome | {"gave_up": gave_up, "seen": account.seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
