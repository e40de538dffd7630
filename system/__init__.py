"""An order and payment service pair on NATS JetStream, with a stand-in payment provider.

What this system promises. Each promise holds through process kills, broker restarts and network partitions:

P1.  An order answered with 202 is stored in the stream ORDERS and reaches PAID or DECLINED once all parts can talk.
P2.  An order is charged at most once, and never for another amount than it was accepted for.
P3.  An order is PAID only if the provider said that the money moved; an unknown status never counts as paid.
P4.  Nothing is charged without a stored order: a request refused with 4xx left no message and no charge.
P5.  A 503 with an `order_id` means that the outcome is unknown: there is no such order, or exactly one. Repeating
     the request under that id as `Idempotency-Key` is safe. A 503 without one left nothing.
P6.  One `Idempotency-Key` is one order for ever: the same request again is the same order, a different one is 409.
P7.  Read your writes: an order answered with 202 can be read at once from the process that answered.
P8.  A state goes forward only: PENDING, then PAID or DECLINED, whatever order messages arrive in and however often.
P9.  A message is acknowledged only after its effect is durable here: the charge announced, the row committed.
P10. Everything that belongs to an order is one connected trace, and every span of a process is numbered, so that a
     loss shows.
P11. A stop (SIGTERM) finishes or gives back what is in hand and exits 0 within 15 s.
P12. Parts may start in any order and come back by themselves; a process says ready only while it can work.

What it does not promise:

-    Order between orders, or a time by which an order is settled while a part is away.
-    Surviving a power cut of the broker: JetStream acknowledges before it syncs. The ledger and the table are synced.
-    A dead-letter stream: a message that can never be handled is terminated, logged and counted.
-    P6 across a lost database: beyond the broker's dedup window of two minutes the table is what remembers. The
     provider still charges once.
-    P7 across a restart of orders: until the projection has caught up, a moment, an order may be unknown.
-    Protection from callers: no authentication, no rate limit, no TLS.
"""
