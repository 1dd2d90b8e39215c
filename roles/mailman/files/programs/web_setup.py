"""Bring the web interface's database, static files and administrators to what is installed: ``web_setup.py [--check]``.

Run by the role and, since packages may be upgraded without it, before each start of the web interface. What was done
last is noted as a digest over everything that matters (installed versions, settings, our application), so that a run
with nothing to do takes a fraction of a second and starts no Django.

Prints one line for each thing done and "unchanged" when there was none. Exit status 0: all is well; 1: a step failed,
its output says why.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

SETTINGS = Path("/etc/mailman3/settings.py")
STATE = Path("/var/lib/mailman3/web")
DONE = STATE / "setup.done"
PACKAGES = (
    *("Django", "django-allauth", "django-appconf", "django-compressor", "django-extensions", "django-gravatar2"),
    *("django-haystack", "django-mailman3", "django-picklefield", "django-q", "django-q2", "djangorestframework"),
    *("HyperKitty", "postorius"),
)
STEPS = (
    ("migrate", "--noinput"),
    ("createcachetable",),
    ("collectstatic", "--noinput", "--clear"),
    ("compress", "--force"),
)


def version(package: str) -> str:
    """The installed version of a package, empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def digest() -> str:
    """What the database, the static files and the administrators depend on, as one digest."""
    found = hashlib.sha256(SETTINGS.read_bytes() + Path(__file__).read_bytes())
    for package in PACKAGES:
        found.update(f"{package} {version(package)}\n".encode())
    for directory in filter(None, os.environ.get("PYTHONPATH", "").split(":")):
        for path in sorted(Path(directory, "mailman_estate_web").rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                found.update(f"{path}\n".encode() + path.read_bytes())
    return found.hexdigest()


def set_name() -> list[str]:
    """Give the site the name that pages and confirmation mails show; Django's own is example.com."""
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.sites.models import Site

    host = settings.ALLOWED_HOSTS[0]
    changed = Site.objects.filter(id=settings.SITE_ID).exclude(domain=host, name=host).update(domain=host, name=host)
    return [f"the site is {host}"] if changed else []


def set_administrators() -> list[str]:
    """Make exactly the people of the settings superusers; returns what was done.

    An account without password is made for those who have none: they come in by OpenID Connect or ask for a password.
    Whoever is a superuser because of a group at the provider is left alone.
    """
    import django

    django.setup()
    from allauth.account.models import EmailAddress
    from django.conf import settings
    from django.contrib.auth import get_user_model

    done = []
    by_us = STATE / "administrators"
    before = set(by_us.read_text().split()) if by_us.exists() else set()
    users = get_user_model().objects
    for username, email in settings.ESTATE_ADMINS.items():
        user, made = users.get_or_create(username=username, defaults={"email": email})
        if made:
            user.set_unusable_password()
        if made or not (user.is_superuser and user.is_staff):
            user.is_superuser = user.is_staff = True
            user.save()
            done.append(f"{username} is an administrator")
        owner = EmailAddress.objects.filter(email__iexact=email, verified=True).first()
        if owner is not None and owner.user_id != user.id:
            raise SystemExit(f"{email} belongs to the account {owner.user.get_username()}: name that one.")
        address, _ = EmailAddress.objects.get_or_create(user=user, email=email, defaults={"primary": made})
        if not address.verified:
            address.verified = True
            address.save()
            done.append(f"{username} has the address {email}")
    for user in users.filter(username__in=before - set(settings.ESTATE_ADMINS), is_superuser=True):
        user.is_superuser = user.is_staff = False
        user.save()
        done.append(f"{user.get_username()} is no administrator any more")
    by_us.write_text("".join(f"{name}\n" for name in settings.ESTATE_ADMINS))
    return done


def main(arguments: list[str]) -> int:
    wanted = digest()
    if DONE.exists() and DONE.read_text().strip() == wanted:
        print("unchanged")
        return 0
    if "--check" in arguments:
        print("database, static files and administrators would be brought up to date")
        return 0
    with (STATE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the role and a restart may come at the same moment
        for step in STEPS:
            done = subprocess.run(
                [sys.executable, "-m", "django", *step], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                print(f"{step[0]} failed:\n{done.stdout}", file=sys.stderr)
                return 1
            print(f"{step[0]} done")
        for line in set_name() + set_administrators():
            print(line)
        new = DONE.with_suffix(".new")
        new.write_text(wanted + "\n")
        new.replace(DONE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
