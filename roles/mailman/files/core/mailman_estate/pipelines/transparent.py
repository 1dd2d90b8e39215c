"""The pipeline of lists on which the author's DKIM signature survives (profile ``transparent`` of docs/lists.md)."""

from __future__ import annotations

from mailman.core.i18n import _
from mailman.pipelines.base import BasePipeline
from public import public


@public
class TransparentPipeline(BasePipeline):
    """Mailman's pipeline for posts without the handlers that write signed fields anew.

    Left out besides avoid-duplicates and cook-headers (see ``handlers/untouched.py``): mime-delete, tagger,
    subject-prefix and dmarc, which change posts for a living.
    """

    name = "estate-transparent-pipeline"
    description = _("Posts leave as their author signed them.")

    _default_handlers = (
        "validate-authenticity",
        "member-recipients",
        "estate-untouched",
        "cleanse",
        "cleanse-dkim",
        "rfc-2369",
        "to-archive",
        "to-digest",
        "to-usenet",
        "after-delivery",
        "acknowledge",
        "to-outgoing",
    )
