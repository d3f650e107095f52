"""The one place where the library's errors become messages on the page."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from qvd_core.errors import QvdError


def as_message(error: QvdError) -> gr.Error:
    """The error as a toast that stays until closed; its text is shown as it is, not as markup."""
    return gr.Error(escape(str(error), quote=False), duration=None, print_exception=False)


def shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler` (a function or a generator function) with `QvdError` turned into a message on the page."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Any:
            try:
                yield from handler(*args, **kwargs)
            except QvdError as error:
                raise as_message(error) from error

        return generator

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except QvdError as error:
            raise as_message(error) from error

    return function
