# The front door. Every target sets up what it needs on a bare Debian or Ubuntu machine (as root, or by sudo).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

INVENTORY ?= inventory/lab
LIMIT     ?= all
# Nothing of what the machine already has is replaced; what is missing is installed. The lab's single sign-on comes by
# npm, from wherever the machine has it. The browser tests want Chromium, which Ubuntu has as a snap only: there it is
# not installed but used when it is there.
PACKAGES  := python3-venv podman runc netavark iptables mmdebstrap openssh-client libnss3-tools fonts-vlgothic

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: lab-hosts  ## build the lab, roll out site.yml, send real messages through every path
	ansible-playbook -i inventory/lab playbooks/site.yml
	ansible-playbook -i inventory/lab playbooks/tlsa_collect.yml playbooks/dns.yml -e dns_apply=true
	python lab/demo.py

lab-hosts: setup  ## only the lab's containers, its internet and its mailbox host
	python lab/lab.py up
	ansible-playbook -i inventory/lab lab/world.yml

test: setup  ## lint, unit tests, role scenarios, the estate; ends with "N passed, N failed"
	python tests/run.py

lint: setup  ## only the linters
	python tests/run.py lint

unit: setup  ## only the unit tests
	python tests/run.py unit

roles: setup  ## only the role scenarios (PLATFORM=debian-12 for another platform, ROLES="arc rspamd" for some)
	python tests/run.py roles

estate: setup  ## only site.yml on the lab and the mail-flow tests
	python tests/run.py estate

site: setup  ## roll out: make site INVENTORY=inventory/<site> [LIMIT=host]
	ansible-playbook -i $(INVENTORY) --limit $(LIMIT) playbooks/site.yml

check: setup  ## what `make site` would change
	ansible-playbook -i $(INVENTORY) --limit $(LIMIT) --check --diff playbooks/site.yml

bench: setup  ## measure the lab's hosts against their bars (the lab must be up)
	python tests/bench/throughput.py
	python tests/bench/list_fanout.py
	python tests/bench/lists_as_data.py
	python tests/bench/dmarc_counts.py
	python tests/bench/analysis_rows.py --container lab-analytics
	python tests/bench/dashboard_queries.py --container lab-analytics
	python tests/bench/board_export.py --container lab-analytics
	python tests/bench/testssl.py

drill: setup  ## kill daemons under load, break DNS, attack TLS, and count the messages (the lab must be up)
	python tests/bench/kill_drill.py
	python tests/bench/list_drill.py
	python tests/bench/survey_drill.py
	python tests/bench/intake_drill.py
	python tests/bench/rotation_drill.py
	python tests/bench/downgrade_drill.py
	python tests/bench/dns_sabotage.py

clean:  ## remove containers, images, network and everything the lab and the tests made
	@if [ -x .venv/bin/python ]; then .venv/bin/python lab/lab.py clean; fi
	rm -rf .venv build .cache .ansible .pytest_cache .ruff_cache .hypothesis

setup: .venv/.complete

# The virtual environment follows requirements.txt; system packages are asked for once for each version of this file.
.venv/.complete: requirements.txt Makefile
	@more=$$(command -v npm > /dev/null || echo npm); \
	more="$$more $$(command -v chromium > /dev/null || grep -q '^ID=ubuntu' /etc/os-release || echo chromium)"; \
	missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) $$more 2>&1 | grep -v '^installed ' || true); \
	if [ -n "$$missing" ]; then \
	    sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(PACKAGES) $$more; \
	fi
	/usr/bin/python3 -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r requirements.txt
	ln -sfn "$$(.venv/bin/python -c 'import ansible_mitogen, os; print(os.path.dirname(ansible_mitogen.__file__))')/plugins/strategy" .venv/strategy
	touch $@

requirements: setup  ## lock requirements.in anew
	pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links \
	    --no-emit-trusted-host --upgrade --output-file requirements.txt requirements.in

.PHONY: help lab lab-hosts test lint unit roles estate site check bench drill clean setup requirements
