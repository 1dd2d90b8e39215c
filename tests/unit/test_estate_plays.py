"""What a run will do to a host, read from the playbooks before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import estate_plays


@pytest.fixture
def playbooks(tmp_path):
    (tmp_path / "site.yml").write_text(
        "- import_playbook: validate.yml\n"
        "- ansible.builtin.import_playbook: gateways.yml\n"
        "- ansible.builtin.import_playbook: all.yml\n"
    )
    (tmp_path / "validate.yml").write_text("- hosts: all\n  tasks: []\n")
    (tmp_path / "gateways.yml").write_text(
        "- hosts: mail_gateways:!disabled\n  vars: {secret: !vault abc}\n  roles: [base, {role: arc, tags: x}, base]\n"
    )
    (tmp_path / "all.yml").write_text("- hosts: [analytics, 'list_host:&big']\n  roles: [{name: exporters}]\n")
    return tmp_path


def roles_of(groups, playbooks):
    return estate_plays.roles_of(groups, playbooks)


def test_roles_come_in_the_order_of_the_plays_and_once(playbooks):
    assert roles_of(["mail_gateways"], playbooks) == ["base", "arc"]


def test_host_of_no_type_has_no_roles(playbooks):
    assert roles_of(["lab_world"], playbooks) == []


def test_disabled_host_has_no_roles(playbooks):
    assert roles_of(["mail_gateways", "disabled"], playbooks) == []


def test_role_by_its_old_name_in_a_list_of_hosts(playbooks):
    assert roles_of(["analytics"], playbooks) == ["exporters"]


def test_real_gateways_have_their_roles():
    found = roles_of(["mail_gateways"], Path(__file__).resolve().parents[2] / "playbooks")
    assert found[0] == "base"
    assert {"postfix", "rspamd", "arc", "postsrsd"} <= set(found)


def test_missing_playbook_is_named(playbooks):
    (playbooks / "all.yml").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*all\.yml: No such file"):
        roles_of([], playbooks)


def test_playbook_that_imports_itself_is_named(playbooks):
    (playbooks / "all.yml").write_text("- import_playbook: site.yml\n")
    with pytest.raises(ValueError, match="imports itself"):
        roles_of([], playbooks)


def test_playbook_that_is_no_yaml_is_named(playbooks):
    (playbooks / "all.yml").write_text("- hosts: [\n")
    with pytest.raises(ValueError, match=r"all\.yml is no YAML"):
        roles_of([], playbooks)


@pytest.fixture
def roles(tmp_path):
    meta = tmp_path / "postfix" / "meta"
    meta.mkdir(parents=True)
    (meta / "argument_specs.yml").write_text(
        "argument_specs: {main: {options: {postfix_myhostname: {type: str, required: true}, postfix_main: {}}}}\n"
    )
    return tmp_path


def test_good_role_variables_give_no_problem(roles):
    results = [{"item": "postfix", "msg": "The arg spec validation passed"}]
    assert estate_plays.role_problems(results, ["postfix_main", "postfix_myhostname", "base_x"], roles) == []


def test_errors_of_the_specification_are_told_with_the_role(roles):
    results = [{"item": "postfix", "argument_errors": ["missing required arguments: postfix_myhostname"]}]
    assert estate_plays.role_problems(results, [], roles) == [
        "role postfix: missing required arguments: postfix_myhostname"
    ]


def test_value_that_cannot_be_computed_is_told(roles):
    results = [{"item": "postfix", "msg": "'nowhere' is undefined"}]
    assert estate_plays.role_problems(results, [], roles) == ["role postfix: 'nowhere' is undefined"]


def test_unknown_role_variable_is_told_with_the_likely_name(roles):
    results = [{"item": "postfix", "msg": "The arg spec validation passed"}]
    (found,) = estate_plays.role_problems(results, ["postfix_mian"], roles)
    assert "postfix_mian is no argument of it; did you mean postfix_main?" in found


def test_role_without_specification_is_named(roles):
    (roles / "postfix/meta/argument_specs.yml").write_text("argument_specs: {}\n")
    with pytest.raises(ValueError, match="role postfix has no argument_specs"):
        estate_plays.argument_spec("postfix", roles)
