"""Posts that went through the gateways, in the archive: found by search, held for the owner, hidden from strangers."""

from __future__ import annotations

import uuid
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import quote

import pytest

from estatelib.browser import claims
from estatelib.waiting import wait

DEV, BOARD, NIHONGO = "dev@ml.example.org", "board@ml.example.org", "nihongo@ml.example.org"
AUTHOR, READER = "user@example.edu", "taro@example.org"


def search(visitor, mailing_list: str, words: str, subject: str) -> None:
    """Type words into the archive's search box until the post is found; the index follows the post by seconds."""
    # The archive of a new list is closed until core has said what the list is.
    wait(lambda: visitor.visit(f"/archives/list/{mailing_list}/") == 200, 60, f"the archive of {mailing_list}", pause=1)

    def found() -> bool:
        visitor.page.fill("form[name=search] [name=q]", words)
        with visitor.page.expect_navigation():
            visitor.page.press("form[name=search] [name=q]", "Enter")
        return visitor.page.locator(".search-results a", has_text=subject).count() > 0

    wait(found, 60, f"post {subject!r} by a search for {words!r}", pause=1)
    visitor.shot()


def test_post_is_found_in_the_archive_by_a_word_of_it(visit, estate):
    mark = f"zebra{uuid.uuid4().hex[:8]}"
    subject = f"Herd {mark}"
    with estate.list(DEV).with_members(AUTHOR, READER):
        post = estate.world("example.edu").send(to=DEV, subject=subject, body=f"The {mark} were grazing.\r\n")
        estate.mailbox(READER).wait_for(post.message_id, timeout=60)
    with visit() as guest:
        search(guest, DEV, f"{mark} grazed", subject)  # another form of the word
        guest.press(guest.page.locator(".search-results a", has_text=subject).first)
        assert f"The {mark} were grazing." in guest.text()
        assert AUTHOR not in guest.page.content(), "the author's address, open to collectors"


def test_japanese_post_is_found_by_japanese_words(visit, estate):
    """Written in ISO-2022-JP (RFC 1468), as many still do, with the words in the middle of a sentence."""
    number = uuid.uuid4().int % 10**8
    subject = f"第{number}回 定例会議のお知らせ"
    message = EmailMessage()
    message["From"] = "山田 太郎 <user@example.edu>"
    message["To"] = NIHONGO
    message["Subject"] = subject
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{uuid.uuid4().hex}@example.edu>"
    message.set_content(f"明日の第{number}回定例会議は三田の研究室で行います。\n", charset="iso-2022-jp")
    world = estate.world("example.edu")
    with estate.list(NIHONGO).with_members(AUTHOR, READER):
        raw = world.sign(message.as_bytes().replace(b"\n", b"\r\n"))
        assert world.hand_over(NIHONGO, raw=raw).reply.code == 250
        estate.mailbox(READER).wait_for(message["Message-ID"], timeout=60)
    with visit("ja", language="ja") as taro:
        search(taro, NIHONGO, f"{number} 研究室", subject)
        taro.press(taro.page.locator(".search-results a", has_text=subject).first)
        assert f"明日の第{number}回定例会議は三田の研究室で行います。" in taro.text()
        taro.visit(f"/archives/search?mlist={quote(NIHONGO)}&q={quote(f'{number} 動物園')}")
        assert subject not in taro.page.inner_text(".search-results")


def test_post_of_a_stranger_is_held_and_let_through_by_the_owner_in_the_browser(visit, estate):
    mark = uuid.uuid4().hex[:8]
    mailing_list = estate.list(DEV)
    with mailing_list.with_members(READER):
        post = estate.world("example.jp").send(to=DEV, subject=f"From a stranger {mark}")
        mailing_list.wait_held(post.message_id, timeout=60)
        assert estate.mailbox(READER).find(post.message_id) == []
        with visit() as alice:
            alice.sign_in("alice")
            assert alice.visit("/mailman3/lists/dev.ml.example.org/held_messages") == 200
            alice.page.click(f"text=From a stranger {mark}")
            alice.page.wait_for_selector("#held-messages-modal.show")
            assert "the meeting is at ten" in alice.page.inner_text("#held-message-content")
            alice.shot()
            alice.press("#held-messages-modal [name=accept]")
            assert mark not in alice.text()
        estate.mailbox(READER).wait_for(post.message_id, timeout=60)


@pytest.fixture
def secret(estate) -> str:
    """The subject of a post to a private list."""
    subject = f"Merger {uuid.uuid4().hex[:8]}"
    with estate.list(BOARD).with_members(AUTHOR, READER):
        post = estate.world("example.edu").send(to=BOARD, subject=subject)
        estate.mailbox(READER).wait_for(post.message_id, timeout=60)
    return subject


def test_private_archive_is_refused_to_strangers_and_shown_to_a_member(visit, estate, secret):
    archive = f"/archives/list/{BOARD}/"
    word = secret.split()[1]
    with estate.list(BOARD).with_members(READER), visit("member") as taro:
        taro.sign_in("taro")
        assert taro.visit(archive) == 200
        search(taro, BOARD, word, secret)
    with visit("nobody") as guest:
        assert guest.visit(archive) == 403
        guest.visit(f"/archives/search?q={word}")
        assert secret not in guest.text()
    with claims(mallory={"email": "bob@example.org", "email_verified": True}), visit("no-member") as bob:
        bob.sign_in("mallory")
        assert bob.visit(archive) == 403
        assert bob.visit(f"/archives/search?mlist={quote(BOARD)}&q={word}") == 403
        bob.visit(f"/archives/search?q={word}")
        assert secret not in bob.text()
        bob.visit("/archives/")
        assert BOARD not in bob.text()
