"""Clients as a platform's customers have them, against a gateway that asks Tollgate.

    clients.py CLIENT BASE_URL CALLS

Each client makes CALLS calls, one after another, and follows the retry advice of its platform's documentation.
It prints one JSON object: how many calls succeeded, how often it was refused, how long it waited, and why it gave
up, if it did. A crash is an exit code.
"""

import json
import random
import sys
import time

import httpx
import openai

MOST_RETRIES = 5


class GaveUp(Exception):
    """The client will not retry."""


class Account:
    """What happened."""

    def __init__(self):
        self.refused = 0
        self.waited = 0.0

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
        answer = httpx.post(f"{base}/chat/completions", json={"model": "chat"})
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


def openai_sdk(base, account):
    """The official SDK with its own retries."""
    asked = []
    hooks = {"response": [lambda answer: asked.append(answer.status_code)]}
    http = openai.DefaultHttpxClient(event_hooks=hooks)
    client = openai.OpenAI(base_url=base, api_key="not-read-by-the-gateway", max_retries=2, http_client=http)
    started = time.monotonic()
    try:
        answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hello"}])
        if answer.choices[0].message.content != "Hello yourself.":
            raise GaveUp(f"another answer: {answer}")
    except openai.RateLimitError as error:
        raise GaveUp(error.code) from error
    finally:
        refused = asked.count(429)
        account.refused += refused
        account.waited += time.monotonic() - started if refused else 0.0


CLIENTS = {"venice": venice, "tiered-chat": tiered_chat, "deapi": deapi, "openai": openai_sdk}


def main(client, base, calls):
    account, succeeded, gave_up = Account(), 0, None
    try:
        for _ in range(int(calls)):
            CLIENTS[client](base, account)
            succeeded += 1
    except GaveUp as why:
        gave_up = str(why)
    outcome = {"succeeded": succeeded, "refused": account.refused, "waited": round(account.waited, 3)}
    print(json.dumps(outcome | {"gave_up": gave_up}))


if __name__ == "__main__":
    main(*sys.argv[1:])
