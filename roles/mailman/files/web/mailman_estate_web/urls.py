"""The public addresses; the same for both backends, so that links in old mail outlive a change of backend."""

from __future__ import annotations

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from .health import health
from .pages import handler429
from .unsubscribe import unsubscribe

__all__ = ["handler429", "urlpatterns"]

# Django's own log-in knows neither the single sign-on nor limits.
admin.site.login = secure_admin_login(admin.site.login)

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="list_index")),
    path("mailman3/", include("postorius.urls")),
    path("archives/", include("hyperkitty.urls")),
    path("", include("django_mailman3.urls")),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
    re_path(r"^unsubscribe/(?P<token>[^/]+)/?$", unsubscribe, name="estate_unsubscribe"),
    path("health", health, name="estate_health"),
]
