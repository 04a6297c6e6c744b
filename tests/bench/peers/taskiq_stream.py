"""taskiq on a Redis stream, which keeps a job until it is acknowledged."""

from taskiq_redis import RedisStreamBroker

from tests.bench.peers.marks import REDIS
from tests.bench.peers.taskiq_app import App

broker = RedisStreamBroker(REDIS, max_connection_pool_size=100)
_app = App(broker, "tests.bench.peers.taskiq_stream:broker")
worker, enqueue, enqueue_all = _app.worker, _app.enqueue, _app.enqueue_all
