"""Validation of `metadata`: names, labels, annotations, finalizers, what an update may not change.

`strategy` calls it for every write.
"""

import re

from flexpert_operator.local.kubeapi.errors import FieldError, forbidden_field, invalid_value, required
from flexpert_operator.local.kubeapi.objects import JsonObject, finalizers_of, is_terminating, metadata

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_ANNOTATION_BYTES = 256 * 1024

_RULES = {
    "subdomain": (
        _SUBDOMAIN,
        253,
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
        "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
        f"'{_SUBDOMAIN}')",
    ),
    "label": (
        _LABEL,
        63,
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and "
        f"end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')",
    ),
    "label1035": (
        _LABEL_1035,
        63,
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
        "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation "
        f"is '{_LABEL_1035}')",
    ),
    "path": (r"[^/%]+", 4096, "may not contain '/' or '%'"),
}


def metadata_errors(obj: JsonObject, name_rule: str) -> list[FieldError]:
    """What is wrong with the object's metadata by itself."""
    meta = metadata(obj)
    return [
        *_name(meta, name_rule),
        *_labels(meta.get("labels") or {}),
        *_annotations(meta.get("annotations") or {}),
        *_finalizers(meta.get("finalizers") or []),
        *_owners(meta.get("ownerReferences") or []),
    ]


def update_errors(new: JsonObject, old: JsonObject) -> list[FieldError]:
    """What an update may not do to metadata: add a finalizer to an object that is going."""
    added = [name for name in finalizers_of(new) if name not in finalizers_of(old)]
    if not is_terminating(old) or not added:
        return []
    names = ", ".join(f'"{name}"' for name in added)
    detail = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{names}}}"
    return [forbidden_field("metadata.finalizers", detail)]


def _name(meta: JsonObject, rule: str) -> list[FieldError]:
    name = meta.get("name")
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    pattern, longest, message = _RULES[rule]
    if len(name) > longest:
        return [invalid_value("metadata.name", name, f"must be no more than {longest} bytes")]
    if not re.fullmatch(pattern, name) or name in (".", ".."):
        return [invalid_value("metadata.name", name, message)]
    return []


def _labels(labels: JsonObject) -> list[FieldError]:
    errors = []
    for key, value in labels.items():
        if not _is_qualified(key):
            errors.append(invalid_value("metadata.labels", key, _qualified_message("name part")))
        if not isinstance(value, str) or len(value) > 63 or not re.fullmatch(f"({_QUALIFIED})?", value):
            errors.append(invalid_value("metadata.labels", value, _label_message(value)))
    return errors


def _annotations(annotations: JsonObject) -> list[FieldError]:
    bad = [key for key in annotations if not _is_qualified(key.lower())]
    errors = [invalid_value("metadata.annotations", key, _qualified_message("name part")) for key in bad]
    size = sum(len(key.encode()) + len(str(value).encode()) for key, value in annotations.items())
    if size > _ANNOTATION_BYTES:
        body = f"Too long: may not be more than {_ANNOTATION_BYTES} bytes"
        errors.append(FieldError("metadata.annotations", "FieldValueTooLong", body))
    return errors


def _finalizers(finalizers: list[str]) -> list[FieldError]:
    return [
        invalid_value("metadata.finalizers", name, _qualified_message("name part"))
        for name in finalizers
        if not _is_qualified(name)
    ]


def _owners(owners: list[JsonObject]) -> list[FieldError]:
    errors = []
    for index, owner in enumerate(owners):
        for name in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(name):
                errors.append(required(f"metadata.ownerReferences[{index}].{name}"))
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        detail = "Only one reference can have Controller set to true"
        errors.append(invalid_value("metadata.ownerReferences", "object", detail))
    return errors


def _is_qualified(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    if slash and not re.fullmatch(_SUBDOMAIN, prefix):
        return False
    return len(name) <= 63 and bool(re.fullmatch(_QUALIFIED, name))


def _qualified_message(what: str) -> str:
    return (
        f"{what} must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
        "character (e.g. 'MyName',  or 'my.name',  or '123-abc')"
    )


def _label_message(value: object) -> str:
    if isinstance(value, str) and len(value) > 63:
        return "must be no more than 63 bytes"
    return (
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
        "and end with an alphanumeric character"
    )
