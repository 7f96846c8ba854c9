"""What an experiment file says of a language model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from retriever.settings.section import PositiveInt, Settings


class ServerSettings(Settings):
    """A server that speaks OpenAI's protocol: vLLM, the llama.cpp server, or a paid one."""

    url: str = Field(description='with the version, such as "http://127.0.0.1:8000/v1"')
    endpoint: Literal["completions", "chat"] = Field("completions", description='"chat" puts prompts into the template that the server has')
    api_key_env: str | None = Field(None, description="environment variable that holds the key; the key itself is never written anywhere")
    concurrency: PositiveInt = Field(8, description="requests at a time")
    requests_per_minute: PositiveInt | None = Field(None, description="at most")
    timeout_seconds: float = Field(120.0, gt=0, description="of one request")
    retries: int = Field(6, ge=0, description="after a refusal, an error of the server or a time-out, with growing pauses")
    top_logprobs: PositiveInt = Field(20, description="tokens of the answer that the server lists; many allow no more than 20")
    tokenizer: str | None = Field(None, description="the model's folder or hub id, for exact lengths and for the chat template with completions")
    prompt_price: float = Field(0.0, ge=0, description="of a million tokens read")
    completion_price: float = Field(0.0, ge=0, description="of a million tokens written")
    request: dict[str, Any] = Field(default={}, description="further fields of each request, as they stand")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f'"{url}" is no address; it begins with http:// or https://, such as "http://127.0.0.1:8000/v1"')
        return url.rstrip("/")


class EngineSettings(Settings):
    """A language model and how it is run."""

    model: str | None = Field(None, description="folder, GGUF file, installed package or hub id; the name that a server knows it by")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the weights' own on a GPU, float32 on a CPU")
    max_length: PositiveInt | None = Field(None, description="tokens of a prompt with its answer; the model's own when left out")
    batch_size: PositiveInt = Field(32, description="prompts at a time, at most")
    batch_tokens: PositiveInt = Field(8192, description="tokens at a time with padding, at most, unless one prompt alone has more")
    server: ServerSettings | None = None
