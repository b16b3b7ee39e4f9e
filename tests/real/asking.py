"""Asks Gatepost without a pause, as a service in Python does: the client is that of examples/python/service.py.

Every thread has a client, a certificate and a connection of its own. Each turn asks one question and then all of
them as one batch; what came of each call is a line of JSON on standard output:

    {"client": 0, "answers": [[question, allowed, decision id, policy revision], ..]}
    {"client": 0, "failed": "UNAVAILABLE"}

A line on standard input is the token to go on with. Its end is ours: calls under way finish first.
"""

import argparse
import importlib.util
import json
import sys
import threading
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/python/service.py"
STATUSES = ("open", "paid", "shipped", "cancelled")


def example():
    specification = importlib.util.spec_from_file_location("service", EXAMPLE)
    service = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(service)
    return service


class Asking:
    def __init__(self, options):
        self.service, self.options = example(), options
        self.stubs = self.service.stubs()
        # Every client would make them anew, and the second time they are registered already.
        self.service.stubs = lambda: self.stubs
        self.token, self.over, self.out = sys.stdin.readline().strip(), threading.Event(), threading.Lock()

    def tell(self, **line):
        with self.out:
            print(json.dumps(line), flush=True)

    def ask(self, number):
        options = self.options
        certificate, key = (file.replace("{n}", str(number)) for file in (options.cert, options.key))
        gatepost = self.service.Gatepost(
            options.address, options.ca, certificate, key, options.deadline,
            server_name="localhost", reload_interval=options.reload_interval,
        )
        tenant, customer = {"type": "Tenant", "id": "acme"}, {"type": "User", "id": "alice"}
        questions = [
            gatepost.question("Order.read", "Order", f"o-{number}", {
                "tenant": tenant, "customer": customer, "status": status, "total": 1250,
            })
            for status in STATUSES
        ]
        turn = number
        while not self.over.is_set():
            turn += 1
            alone = turn % len(questions)
            for asked in ([alone], list(range(len(questions)))):
                self.call(gatepost, number, asked, [questions[question] for question in asked])
            time.sleep(options.pause)

    def call(self, gatepost, number, asked, questions):
        try:
            answers = gatepost.batch(self.token, questions)
        except self.service.NoAnswer as failure:
            return self.tell(client=number, failed=str(failure))
        wrong = [str(answer) for answer in answers if isinstance(answer, Exception)]
        if wrong:
            return self.tell(client=number, failed=wrong[0])
        told = [
            [question, answer.allowed, answer.decision_id, answer.policy_revision]
            for question, answer in zip(asked, answers)
        ]
        return self.tell(client=number, answers=told)

    def run(self):
        threads = [threading.Thread(target=self.ask, args=[number]) for number in range(self.options.clients)]
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            self.token = line.strip()
        self.over.set()
        for thread in threads:
            thread.join()


def main():
    parser = argparse.ArgumentParser(description="Asks Gatepost without a pause.")
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--cert", required=True, help="{n} stands for the client's number")
    parser.add_argument("--key", required=True)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds")
    parser.add_argument("--reload-interval", type=float, default=10.0, help="seconds")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between two turns")
    Asking(parser.parse_args()).run()


if __name__ == "__main__":
    main()
