"""An order and payment service pair on NATS JetStream, with a stand-in payment provider.

What this system promises. Each promise holds through process kills, broker restarts and network partitions, and each is
named by the tests that prove it (`system/tests/test_promises.py` sees to that):

P1.  An order answered with 202 is stored in the stream ORDERS, and reaches PAID or DECLINED, or CANCELLED or REFUNDED
     if its customer cancelled it, once all parts can talk.
P2.  An order is charged at most once and refunded at most once, and never for another amount than it was accepted for.
P3.  An order is PAID only if the provider said that the money moved, and REFUNDED only if it said that it was given
     back; an unknown status never counts as either.
P4.  Nothing is charged without a stored order: a request refused with 4xx left no message and no charge.
P5.  A 503 with an `order_id` means that the outcome is unknown: there is no such order, or exactly one. Repeating
     the request under that id as `Idempotency-Key` is safe. A 503 without one left nothing.
P6.  One `Idempotency-Key` is one order for ever: the same request again is the same order, a different one is 409.
P7.  Read your writes: an order answered with 202 can be read at once from the process that answered.
P8.  A state goes forward only: PENDING, then PAID, DECLINED or CANCELLED; PAID, then REFUNDED; whatever order messages
     arrive in and however often.
P9.  A message is acknowledged only after its effect is durable here: the charge recorded and announced, the row
     committed. A full disk or a lost database costs time, never an order.
P10. Everything that belongs to an order is one connected trace, every span of a process is numbered, so that a loss
     shows, and every log line names its trace.
P11. A stop (SIGTERM) finishes or gives back what is in hand and exits 0 within 15 s; a second signal ends at once.
P12. Parts may start in any order and come back by themselves; a process says ready only while it can work; replicas
     share the work.
P13. A cancellation answered with 202 is carried out, however it races with the charge: the order is never charged, or
     refunded once.
P14. A message that nobody can handle is not lost: it goes to the dead letters with why, from where and its trace, and
     can be replayed. An outage is never a reason.
P15. A provider that fails or is silent is left in peace: after 5 failures in a row a circuit breaker stops calls and
     deliveries for 15 s, and retries have a budget. Orders are taken all the while.
P16. Overload is answered at once, with 503 or 429 and without an `order_id`; what was not taken left nothing.

What it does not promise:

-    Order between orders, or a time by which an order is settled while a part is away.
-    Surviving a power cut of the broker: JetStream acknowledges before it syncs. The ledger and the tables are synced.
-    P6 across a lost database: beyond the broker's dedup window of two minutes the table is what remembers. The
     provider still charges once.
-    P7 across a restart of orders: until the projection has caught up, a moment, an order may be unknown. With several
     replicas of orders, the others may not know of it for as long.
-    One message per result for ever: a payments service that dies between the broker's ack and its own note of it, and
     is away for more than two minutes, announces that result again. It changes nothing.
-    That a refund which somebody makes at the provider, without a cancellation of ours, is announced: it is recorded.
-    Protection from callers: no authentication of customers, no TLS on HTTP.
"""
