"""taskiq on a Redis list: a job that a worker has taken is gone if the worker dies."""

from taskiq_redis import ListQueueBroker

from tests.bench.peers.marks import REDIS
from tests.bench.peers.taskiq_app import App

broker = ListQueueBroker(REDIS, max_connection_pool_size=100)
_app = App(broker, "tests.bench.peers.taskiq_list:broker")
worker, enqueue, enqueue_all = _app.worker, _app.enqueue, _app.enqueue_all
