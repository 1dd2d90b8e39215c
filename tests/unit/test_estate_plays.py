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
        "argument_specs:\n"
        "  main:\n"
        "    options:\n"
        "      postfix_myhostname: {type: str, required: true}\n"
        "      postfix_processes: {type: int}\n"
        "      postfix_level: {type: str, choices: [may, dane]}\n"
        "      postfix_password: {type: str, choices: [none], no_log: true}\n"
        "      postfix_maps: {type: list, elements: dict, options: {name: {type: str, required: true}}}\n"
    )
    return tmp_path


def role_problems(roles, **variables):
    return estate_plays.role_problems("postfix", roles, variables, variables.__getitem__)


def test_good_role_variables_give_no_problem(roles):
    assert role_problems(roles, postfix_myhostname="x", postfix_processes=3, postfix_level="may", base_x=1) == []


def test_missing_mandatory_argument_is_named(roles):
    assert role_problems(roles) == ["role postfix: missing required arguments: postfix_myhostname"]


def test_wrong_values_are_told_with_the_value_and_what_is_allowed(roles):
    found = role_problems(roles, postfix_myhostname="x", postfix_level="must", postfix_processes="many")
    assert len(found) == 2
    assert any("postfix_level must be one of: may, dane, got: must" in sentence for sentence in found)
    assert any("postfix_processes" in sentence and "many" in sentence and "int" in sentence for sentence in found)


def test_missing_part_of_an_element_is_named(roles):
    (found,) = role_problems(roles, postfix_myhostname="x", postfix_maps=[{}])
    assert "name found in postfix_maps" in found


def test_secret_value_is_not_shown(roles):
    (found,) = role_problems(roles, postfix_myhostname="x", postfix_password="hunter2")
    assert "postfix_password" in found
    assert "hunter2" not in found


def test_value_that_cannot_be_computed_is_told_beside_the_other_problems(roles):
    variables = {"postfix_myhostname": "", "postfix_level": "must"}

    def value_of(name):
        if name == "postfix_myhostname":
            raise RuntimeError("'nowhere' is undefined")
        return variables[name]

    found = estate_plays.role_problems("postfix", roles, variables, value_of)
    assert found[0] == "role postfix: postfix_myhostname cannot be computed: 'nowhere' is undefined"
    assert len(found) == 2, "the other problem, and nothing about a missing argument"


def test_unknown_role_variable_is_told_with_the_likely_name(roles):
    (found,) = role_problems(roles, postfix_myhostname="x", postfix_proceses=1)
    assert "postfix_proceses is no argument of it; did you mean postfix_processes?" in found


def test_role_without_specification_is_named(roles):
    (roles / "postfix/meta/argument_specs.yml").write_text("argument_specs: {}\n")
    (found,) = role_problems(roles)
    assert "role postfix has no argument_specs" in found


def test_missing_role_is_named(roles):
    (found,) = estate_plays.role_problems("nothing", roles, [], None)
    assert "role nothing: cannot read" in found
