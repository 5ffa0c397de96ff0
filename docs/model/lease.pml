/*
 * The lease protocol, for spin: sessions, claims, heartbeats, tokens, the reaper, permits and deadlines.
 *
 * What it says, what it leaves out and why that is sound: docs/reliability/model.md. `make model` checks it.
 *
 * One step of the model is one transaction of the coordinator, or one step of an agent between two waits. The network
 * loses, delays, repeats and reorders; whatever is in flight is a variable, and nobody is ever made to be quick.
 *
 *   (no switch)             jobs that may be tried again, any number of faults
 *   -DAT_MOST_ONCE          a deployment: permits, the long lease and the supervisor's deadline, under a discrete clock
 *   -DCOUNTERS              the reaper looks at counters; without it, it may expire any session at any time
 *   -DLIVENESS              for `ltl in_the_end`: agents can be down, agent 0 for ever
 *   -DFAULTS=n              at most n faults
 *   -DATTEMPTS=n -DJOBS=n   how many claims there can be, and of how many jobs
 *
 * Every other switch takes one rule out of the protocol, to see that spin notices: scripts/check_model.py has them all.
 */

#ifndef ATTEMPTS
#define ATTEMPTS 3
#endif
#ifndef JOBS
#define JOBS 1
#endif
#define AGENTS 2
#define SLOTS 1

/* The clock of a deployment, in ticks. The supervisor ends its sandbox a tick before the long lease is over: the
 * margin of agent/supervisor/deadline.py, beside which clocks may differ and what is under way may be late. */
#define LONG_LEASE 2
#ifdef NO_MARGIN
#define DEADLINE LONG_LEASE
#else
#define DEADLINE 1
#endif

#ifdef FAULTS
byte faults = FAULTS;
#define FAULT (faults > 0)
#define fault_happens faults--
#else
#define FAULT true
#define fault_happens skip
#endif

/* The row of an attempt. `VANISHED`: a failover took the claim back, and the next one gets the same id again. */
#define NONE 0
#define LEASED 1
#define RUNNING 2
#define ENDED_WELL 3
#define RETURNED 4
#define LOST 5
#define VANISHED 6

/* What the agent has on disk of an attempt. A sandbox may live from TAKEN to SETTLED, and while ABORTED. */
#define NOTHING 0
#define TAKEN 1
#define SUPERVISED 2
#define SETTLED 3
#define ABORTED 4

/* An agent's connection. */
#define OFF 0
#define HELLO 1
#define WELCOME 2
#define ON 3

/* --- the database --- */
bit queued[JOBS];                /* in the table `queue` */
bit blocked[JOBS];               /* a lost deployment: it waits for a person */
byte claims;                     /* attempts so far: an attempt's index is its token, and its place among the claims */
byte row[ATTEMPTS];
byte job[ATTEMPTS];
byte agent[ATTEMPTS];
bit resumed[ATTEMPTS];           /* its session is not that of its claim: its number is 0 */
bit session[AGENTS];             /* the agent has a row in `session` */

/* --- replicas --- */
byte credit[AGENTS];             /* of the session whose row stands */
#ifdef COUNTERS
bit seen[AGENTS];                /* the reaper has seen the counter, and it has not moved since */
#define SEEN(a) seen[a]
#define moves(a) seen[a] = 0
#else
#define SEEN(a) false
#define moves(a) skip
#endif
bit missing[ATTEMPTS];           /* a heartbeat did not name it: to be settled */

#ifdef NO_FENCE
bit older[AGENTS];               /* the row of the session before stands as well, and its replica claims for it */
byte older_credit[AGENTS];
#endif

bit failed_over;                 /* once */

/* --- on the wire --- */
bit sent[ATTEMPTS];              /* its assignment */
bit answer[ATTEMPTS];            /* to its outcome: it is kept, or nobody wants it. To one that has none: abort */
byte said[ATTEMPTS];             /* 1: Started was handed in, 2: Ended too. It may arrive whenever it likes, and again */
byte hello_names[AGENTS];        /* of the living; whoever named one that is over is answered with abort */
bit late_hello[AGENTS];          /* an older Hello whose connection was cut, and which may still arrive */
byte late_names[AGENTS];
byte beat[AGENTS];               /* 0: none under way, 1: sent, 2: its answer is under way */
byte beat_lacks[AGENTS];         /* what it should have named and does not: numbers up to its highest */

/* --- agents --- */
#ifdef LIVENESS
bit down[AGENTS];                /* without it, one that does nothing */
#endif
byte connection[AGENTS];
bit mine[AGENTS];                /* the row in `session` is that of this connection */
byte granted[AGENTS];
bit received[ATTEMPTS];          /* its number is at most the highest that came in this session */
byte hold[ATTEMPTS];

/* --- what is only watched --- */
byte accepted[JOBS];             /* outcomes */

hidden byte i, r;

#ifdef AT_MOST_ONCE
#define IDLE 1
#define WORKS 2
byte sandbox[ATTEMPTS];          /* 0: none, IDLE: no command has begun, WORKS */
byte nonce[ATTEMPTS];            /* of its supervisor's memory: 2 when a second one was started */
byte permit[ATTEMPTS];           /* in the row */
byte permitted[ATTEMPTS];        /* the answer, at the agent or under way */
bit orphan[ATTEMPTS];            /* no session, and its own long lease */
byte out_of_contact[ATTEMPTS];   /* ticks since it was orphaned, or lost at once */
byte since_beat[ATTEMPTS];       /* ticks since the last answered heartbeat was sent, as its supervisor knows it */
byte beat_age[AGENTS];           /* ticks since the heartbeat under way was sent */
bit frozen[AGENTS];              /* the whole machine: agent, supervisor, sandbox */
byte begun[JOBS], asked[JOBS];   /* watched: how often the command was begun, and how often a person asked again */
#define ORPHAN(t) orphan[t]
#define FROZEN(a) frozen[a]
#else
#define ORPHAN(t) false
#define FROZEN(a) false
#endif

#if ATTEMPTS == 2
#define ANY(P, x) (P(0, x) || P(1, x))
#define SUM(P, x) (P(0, x) + P(1, x))
#elif ATTEMPTS == 3
#define ANY(P, x) (P(0, x) || P(1, x) || P(2, x))
#define SUM(P, x) (P(0, x) + P(1, x) + P(2, x))
#else
#define ANY(P, x) (P(0, x) || P(1, x) || P(2, x) || P(3, x))
#define SUM(P, x) (P(0, x) + P(1, x) + P(2, x) + P(3, x))
#endif

#define LIVE(t) (row[t] == LEASED || row[t] == RUNNING)
#ifdef LIVENESS
#define AWAKE(a) (!down[a] && !FROZEN(a))
#else
#define AWAKE(a) (!FROZEN(a))
#endif
/* Named in Hello and heartbeats: every attempt whose outcome is not acknowledged. */
#define HELD(t) (hold[t] == TAKEN || hold[t] == SUPERVISED || hold[t] == SETTLED)
#define NAMED_BIT(t, a) ((agent[t] == a && HELD(t) && LIVE(t)) << t)
#define NAMED(a) SUM(NAMED_BIT, a)
/* A slot is taken until the sandbox is gone. */
#define OCCUPIES(t, a) (agent[t] == a && (hold[t] == TAKEN || hold[t] == SUPERVISED || hold[t] == ABORTED))
#define OCCUPIED(a) ANY(OCCUPIES, a)
#define COUNTED(t, a) (agent[t] == a && (HELD(t) || hold[t] == ABORTED))
/* By the books: leases of the agent's session. */
#define BOOKED(t, a) (agent[t] == a && LIVE(t) && !ORPHAN(t))
#define LIVES_OF(t, j) (job[t] == j && LIVE(t))
#ifdef LIVENESS
#define IS_SILENT(a) down[a]     /* whoever is quick again is not: to overlook that is a fault */
#else
#define IS_SILENT(a) false
#endif
#define TALKS(t) (AWAKE(agent[t]) && connection[agent[t]] == ON)
#define HEARS(t) (connection[agent[t]] == ON && mine[agent[t]] && !answer[t])

/* Agents name attempts by their ids; only a failover gives one id to two claims, one after the other. */
#define BEFORE(t) ((t + ATTEMPTS - 1) % ATTEMPTS)
#define SAME_ID_BEFORE(t) (t > 0 && row[BEFORE(t)] == VANISHED && agent[BEFORE(t)] == agent[t])
#define IS_IN(names, t) ((names >> t) & 1)

#define TALKS_OF(a) (AWAKE(a) && connection[a] == ON)
#ifdef NO_NUMBERS
#define LACKED_BIT(t, a) (!(agent[t] == a && HELD(t)) << t)
#elif defined(RENEW_UNACKNOWLEDGED)
#define LACKED_BIT(t, a) 0
#else
#define LACKED_BIT(t, a) ((BOOKED(t, a) && (resumed[t] || received[t]) && !HELD(t) && !(SAME_ID_BEFORE(t) && HELD(BEFORE(t)))) << t)
#endif
#define LACKED(a) SUM(LACKED_BIT, a)
/* Others change nothing: one sent before a supervisor was started tells it nothing. */
#ifdef AT_MOST_ONCE
#define WORTH_A_BEAT(a) (LACKED(a) || SEEN(a) || ANY(SUPERVISES, a))
#else
#define WORTH_A_BEAT(a) (LACKED(a) || SEEN(a))
#endif

#ifdef NO_TOKEN
#define TAKEN_FOR(t) (row[t] == VANISHED && t + 1 < claims -> t + 1 : t)
#else
#define TAKEN_FOR(t) t
#endif
#define MAY_START(t) (row[TAKEN_FOR(t)] == LEASED)
#ifdef LATE_OUTCOME
#define MAY_END(t) (LIVE(t) || row[t] == LOST)
#else
#define MAY_END(t) (row[TAKEN_FOR(t)] == LEASED || row[TAKEN_FOR(t)] == RUNNING)
#endif

#ifdef AT_MOST_ONCE
#ifdef PERMIT_UNSTARTED
#define MAY_PERMIT(t) LIVE(t)
#else
#define MAY_PERMIT(t) (row[t] == RUNNING)
#endif
#ifdef NO_NONCE
#define PERMITTABLE(t, n) MAY_PERMIT(t)
#else
#define PERMITTABLE(t, n) (MAY_PERMIT(t) && (!permit[t] || permit[t] == n))
#endif
#ifdef NO_PERMIT
#define MAY_BEGIN(t) (since_beat[t] < DEADLINE)
#elif defined(BEGIN_LATE)
#define MAY_BEGIN(t) permitted[t]
#else
#define MAY_BEGIN(t) (permitted[t] && since_beat[t] < DEADLINE)
#endif
#ifdef LIVENESS
#define CAN_END(t) (sandbox[t] != IDLE || (permit[t] && permit[t] != nonce[t]))
#else
#define CAN_END(t) true
#endif
#define SUPERVISES(t, a) (agent[t] == a && sandbox[t] && hold[t] != NOTHING)
#define IS_ASKING(t) (HEARS(t) && hold[t] == SUPERVISED && sandbox[t] == IDLE && !permitted[t])
#define WORKING(t, x) (sandbox[t] == WORKS && !frozen[agent[t]])
#define HAS_SANDBOX(t, a) (agent[t] == a && sandbox[t])
#define LATE(t, x) (sandbox[t] && since_beat[t] >= DEADLINE && !frozen[agent[t]])
#define COUNTS_CONTACT(t) (orphan[t] || (row[t] == LOST && permit[t] && blocked[job[t]]))
#ifdef RETRY_AT_ONCE
#define MAY_STILL_RUN(t, x) false
#else
#define MAY_STILL_RUN(t, x) (row[t] == LOST && permit[t] && out_of_contact[t] < LONG_LEASE)
#endif
#ifdef NO_DEADLINE
#define MAY_TICK true
#else
#define MAY_TICK (!ANY(LATE, 0))
#endif
#else
#define CAN_END(t) true
#endif

inline sandbox_gone(t) {
#ifdef AT_MOST_ONCE
    sandbox[t] = 0; since_beat[t] = 0; permitted[t] = 0
#else
    skip
#endif
}

/* ---------------------------------------------------------------- transactions */

inline say(t, what) {
    if
    :: LIVE(t) || MAY_START(t) || MAY_END(t) || row[t] == VANISHED -> said[t] = what
    :: else
    fi
}

/* What nothing depends on any more is forgotten: late reports change nothing. */
inline over(t) {
#ifndef LATE_OUTCOME
    said[t] = 0;
#endif
#ifdef AT_MOST_ONCE
    nonce[t] = 0;
    if
    :: row[t] != LOST -> permit[t] = 0
    :: else
    fi;
#endif
    missing[t] = 0; resumed[t] = 0; received[t] = 0
}

/* attempts.gone: what had started is lost, the rest returned. A lost deployment is for a person to judge. */
inline gone(t) {
    if
    :: row[t] == LEASED -> row[t] = RETURNED; queued[job[t]] = 1
    :: row[t] == RUNNING ->
        row[t] = LOST;
#ifdef AT_MOST_ONCE
        if
        :: permit[t] && !orphan[t] -> out_of_contact[t] = 0
        :: else
        fi;
        blocked[job[t]] = 1
#else
        queued[job[t]] = 1
#endif
    :: else
    fi;
#ifdef AT_MOST_ONCE
    orphan[t] = 0;
#endif
    over(t)
}

/* Given up because its agent did not name it: no agent may lose so what it has in its hands. */
inline gone_at_its_agent(t) {
    assert(!HELD(t));
    gone(t)
}

/* dispatching._open_session. `names`, `gives`: what that Hello said. */
inline open_session(a, names, gives) {
#ifdef NO_FENCE
    if
    :: session[a] && !older[a] -> older[a] = 1; older_credit[a] = credit[a]
    :: else
    fi;
#endif
    for (i : 0 .. ATTEMPTS - 1) {
        if
        :: agent[i] == a && LIVE(i) ->
            if
            :: IS_IN(names, i) ->
                resumed[i] = 1;
#ifdef AT_MOST_ONCE
                orphan[i] = 0; out_of_contact[i] = 0;
#endif
                missing[i] = 0  /* whoever settles it finds it in other hands than the heartbeat did */
#ifdef RENEW_UNACKNOWLEDGED
            :: else -> resumed[i] = 1
#else
            :: else -> gone_at_its_agent(i)
#endif
            fi
        :: else
        fi
    }
    i = 0;
    session[a] = 1; moves(a); credit[a] = gives;
    if
    :: beat[a] == 1 -> beat[a] = 0; beat_lacks[a] = 0
    :: else
    fi
}

/* attempts.claim: the queue's row is deleted, the attempt and its lease are made. */
inline claim(j, a) {
    assert(!ANY(LIVES_OF, j));  /* never two live leases of which both may complete */
    queued[j] = 0;
    row[claims] = LEASED; job[claims] = j; agent[claims] = a;
    claims++;
    assert(SUM(BOOKED, a) <= SLOTS);
    assert(!accepted[j])
}

inline record_started(t) {
    r = TAKEN_FOR(t);
    if
    :: row[r] == LEASED -> row[r] = RUNNING
    :: else
    fi;
    r = 0
}

/* An outcome of one that never said it started is believed. */
inline record_ended(t) {
    r = TAKEN_FOR(t);
    if
    :: MAY_END(r) ->
        assert(r == t);  /* it counts only from whoever holds the lease */
        row[r] = ENDED_WELL;
#ifdef AT_MOST_ONCE
        orphan[r] = 0; out_of_contact[r] = 0;
#endif
        over(r);
        accepted[job[r]]++;
        assert(accepted[job[r]] <= 1)
    :: else
    fi;
    r = 0
}

/* ---------------------------------------------------------------- the coordinator */

/* By the session's credit and by the books. */
#define FREE(a) (session[a] && credit[a] && SUM(BOOKED, a) < SLOTS)

inline assign(a) {
    credit[a]--;
    sent[claims - 1] = mine[a]
}

/* The agents are alike, so the first claim may be said to be that of agent 0, but for who may stay away for ever. */
#ifdef LIVENESS
#define SECOND true
#else
#define SECOND (claims > 0)
#endif

proctype Dispatcher() {
#ifdef NO_ROW_LOCK  /* the row of the queue is read by one statement and deleted by another, later */
    do
    :: queued[0] ->
        if
        :: d_step { claims < ATTEMPTS && FREE(0) -> claim(0, 0); assign(0) }
        :: d_step { claims < ATTEMPTS && FREE(1) -> claim(0, 1); assign(1) }
        fi
    od
#else
    do
    :: d_step { queued[0] && claims < ATTEMPTS && FREE(0) -> claim(0, 0); assign(0) }
    :: d_step { queued[0] && claims < ATTEMPTS && FREE(1) && SECOND -> claim(0, 1); assign(1) }
#if JOBS > 1
    :: d_step { queued[1] && claims < ATTEMPTS && FREE(0) -> claim(1, 0); assign(0) }
    :: d_step { queued[1] && claims < ATTEMPTS && FREE(1) && SECOND -> claim(1, 1); assign(1) }
#endif
#ifdef NO_FENCE
    :: d_step { queued[0] && claims < ATTEMPTS && older[0] && older_credit[0] -> claim(0, 0); older_credit[0]-- }
    :: d_step { queued[0] && claims < ATTEMPTS && older[1] && older_credit[1] -> claim(0, 1); older_credit[1]-- }
#if JOBS > 1
    :: d_step { queued[1] && claims < ATTEMPTS && older[0] && older_credit[0] -> claim(1, 0); older_credit[0]-- }
    :: d_step { queued[1] && claims < ATTEMPTS && older[1] && older_credit[1] -> claim(1, 1); older_credit[1]-- }
#endif
#endif
#ifdef LIVENESS
    /* So many faults do not cost more claims than there are, or the search would be of less than it says. */
    :: d_step { queued[0] && claims == ATTEMPTS -> assert(false) }
#endif
    od
#endif
}

/* The coordinator's side of a session: its Hello, and one that was late. */
proctype Session(byte a) {
    do
    :: d_step { connection[a] == HELLO ->
        open_session(a, hello_names[a], granted[a]);
        for (i : 0 .. ATTEMPTS - 1) {  /* the verdicts of Welcome */
            if
            :: agent[i] == a && HELD(i) && !LIVE(i) -> answer[i] = 1
            :: else
            fi
        }
        i = 0;
        hello_names[a] = 0;
#ifndef NO_HELLO_NUMBER
        /* An older one that comes now bears a lower number. */
        late_hello[a] = 0; late_names[a] = 0;
#endif
        mine[a] = 1;
        connection[a] = WELCOME }
    :: d_step { late_hello[a] ->
        open_session(a, late_names[a], SLOTS);
        late_hello[a] = 0; late_names[a] = 0;
        mine[a] = 0 }
    od
}

/* Heartbeats: sent, committed, answered. What one lacks of the living is known when it is sent: what is assigned later
 * has a higher number. */
proctype Heartbeats(byte a) {
    do
    :: d_step { TALKS_OF(a) && !beat[a] && WORTH_A_BEAT(a) -> beat[a] = 1; beat_lacks[a] = LACKED(a) }
    :: d_step { beat[a] == 1 ->
        if
        :: session[a] ->
            moves(a);
            for (i : 0 .. ATTEMPTS - 1) {
                if
                :: BOOKED(i, a) && IS_IN(beat_lacks[a], i) -> missing[i] = 1
                :: else
                fi
            }
            i = 0
        :: else
        fi;
        beat_lacks[a] = 0;
#ifdef AT_MOST_ONCE
        if
        :: session[a] && connection[a] == ON && mine[a] -> beat[a] = 2
        :: else -> beat[a] = 0; beat_age[a] = 0
        fi }
#else
        beat[a] = 0 }
#endif
#ifdef AT_MOST_ONCE
    :: d_step { beat[a] == 2 && AWAKE(a) && connection[a] == ON ->
        for (i : 0 .. ATTEMPTS - 1) {
            if
            :: SUPERVISES(i, a) ->
#ifdef COUNT_FROM_ANSWER
                since_beat[i] = 0
#else
                since_beat[i] = (beat_age[a] < since_beat[i] -> beat_age[a] : since_beat[i])
#endif
            :: else
            fi
        }
        i = 0;
        beat[a] = 0; beat_age[a] = 0 }
#endif
    od
}

/* It expires a session whose counter has stood still between two of its looks, however close they are: a lease that is
 * shorter than any. An agent that is frozen, or a replica that does not commit, is one whose session ends so. */
proctype Reaper(byte a) {
    do
#ifdef COUNTERS
    :: d_step { session[a] && !seen[a] -> seen[a] = 1 }
#endif
#ifndef NO_REAPER
#if !defined(COUNTERS)
    :: d_step { session[a] && (IS_SILENT(a) || FAULT) ->
#elif defined(NO_COUNTER)
    :: d_step { session[a] && (IS_SILENT(a) || FAULT) ->
        assert(seen[a]);  /* a heartbeat that is committed is never overlooked */
#else
    :: d_step { session[a] && seen[a] && (IS_SILENT(a) || FAULT) ->
#endif
        if
        :: !IS_SILENT(a) -> fault_happens
        :: else
        fi;
        for (i : 0 .. ATTEMPTS - 1) {
            if
#ifdef AT_MOST_ONCE
            :: BOOKED(i, a) && permit[i] -> orphan[i] = 1; out_of_contact[i] = 0; missing[i] = 0
            :: BOOKED(i, a) && !permit[i] -> gone(i)
#else
            :: BOOKED(i, a) -> gone(i)
#endif
            :: else
            fi
        }
        i = 0;
        session[a] = 0; moves(a); credit[a] = 0; mine[a] = 0 }
#else
    :: false -> skip
#endif
    od
}

/* ---------------------------------------------------------------- the agents */

/* What dies with a connection. A Hello and a heartbeat may still arrive, with what they said. */
inline cut(a) {
    if
    :: connection[a] == HELLO ->
        late_hello[a] = 1; late_names[a] = hello_names[a];
        hello_names[a] = 0
    :: else
    fi;
    for (i : 0 .. ATTEMPTS - 1) {
        if
        :: agent[i] == a ->
            sent[i] = 0; answer[i] = 0; received[i] = 0;
#ifdef AT_MOST_ONCE
            permitted[i] = 0
#endif
        :: else
        fi
    }
    i = 0;
#ifdef AT_MOST_ONCE
    if
    :: beat[a] == 2 -> beat[a] = 0
    :: else
    fi;
    beat_age[a] = 0;
#endif
    connection[a] = OFF; mine[a] = 0; granted[a] = 0
}

inline take_answer(t) {
    if
    :: hold[t] == SETTLED -> hold[t] = NOTHING
    :: hold[t] == TAKEN || hold[t] == SUPERVISED -> hold[t] = ABORTED
    :: else
    fi;
    answer[t] = 0
}

/* Its memory is gone; its disk, its supervisors and their sandboxes are not. */
proctype Agent(byte a) {
    do
    :: d_step { AWAKE(a) && connection[a] == OFF ->
        hello_names[a] = NAMED(a);
#ifdef NO_CREDIT
        granted[a] = SLOTS;
#else
        granted[a] = (ANY(COUNTED, a) -> 0 : SLOTS);
#endif
        connection[a] = HELLO }
    :: d_step { AWAKE(a) && connection[a] == WELCOME ->
        for (i : 0 .. ATTEMPTS - 1) {
            if
            :: agent[i] == a && answer[i] -> take_answer(i)
            :: else
            fi
        }
        i = 0;
        connection[a] = ON }
    /* Its next heartbeat is told that the session is over. */
    :: d_step { AWAKE(a) && connection[a] == ON && !mine[a] -> cut(a) }
#ifndef KEEP_SLOT
    :: d_step { AWAKE(a) && connection[a] == ON && mine[a] && !granted[a] && !OCCUPIED(a) ->
        granted[a] = 1;
        credit[a]++;
        assert(credit[a] <= SLOTS) }  /* Session.grant: more would end the agent */
#endif
#ifdef AT_MOST_ONCE
    /* A machine goes on: a supervisor whose time is over kills what works before that has done anything. */
    :: d_step { frozen[a] ->
        frozen[a] = 0;
        for (i : 0 .. ATTEMPTS - 1) {
            if
#ifndef NO_DEADLINE
            :: agent[i] == a && sandbox[i] == WORKS && since_beat[i] >= DEADLINE -> sandbox_gone(i)
#endif
            :: else
            fi
        }
        i = 0;
        assert(SUM(WORKING, 0) <= 1) }
#endif
#ifdef LIVENESS
    :: d_step { a == 1 && down[a] -> down[a] = 0 }  /* the other one may stay away for ever */
#endif
    od
}

/* A credit went into every number up to this one. */
inline receive(t) {
    sent[t] = 0; granted[agent[t]] = 0;
    for (i : 0 .. t) {
        if
        :: agent[i] == agent[t] && LIVE(i) -> received[i] = 1
        :: else
        fi
    }
    i = 0
}

/* One attempt, at its agent and at the coordinator. */
proctype Attempt(byte t) {
    row[t] != NONE;
    do
    /* --- the agent: agent/session.py, agent/jobs.py, agent/job.py */
    :: d_step { TALKS(t) && sent[t] ->
        receive(t);
        if
        :: SAME_ID_BEFORE(t) && hold[BEFORE(t)] != NOTHING ->  /* refused, and that one is dropped */
            take_answer(BEFORE(t))
        :: else ->
            assert(!OCCUPIED(agent[t]));  /* credit is exact: a slot that is taken was never granted */
            hold[t] = TAKEN
        fi }
    :: d_step { TALKS(t) && sent[t] && FAULT ->  /* refused: no room on the disk, it is leaving */
        fault_happens; receive(t) }
    :: d_step { AWAKE(agent[t]) && hold[t] == TAKEN ->
        hold[t] = SUPERVISED;
#ifdef AT_MOST_ONCE
        sandbox[t] = IDLE; nonce[t]++; since_beat[t] = 0; permitted[t] = 0;
#endif
        say(t, 1) }
    :: d_step { AWAKE(agent[t]) && hold[t] == SUPERVISED && CAN_END(t) -> hold[t] = SETTLED; say(t, 2); sandbox_gone(t) }
    :: d_step { AWAKE(agent[t]) && hold[t] == ABORTED -> hold[t] = NOTHING; sandbox_gone(t) }
    :: d_step { TALKS(t) && answer[t] && !sent[t] -> take_answer(t) }
    :: d_step { hold[t] == TAKEN && connection[agent[t]] == OFF && FAULT ->
        fault_happens; hold[t] = NOTHING }  /* a power cut: that record was not on the disk yet */

    /* --- the coordinator */
    :: d_step { said[t] >= 1 && MAY_START(t) -> record_started(t) }
    :: d_step { said[t] == 2 && MAY_END(t) -> record_ended(t) }
    /* the answer to a report, or to its repetition */
    :: d_step { HEARS(t) && hold[t] == SETTLED && !LIVE(t) && !MAY_END(t) ->
        answer[t] = 1 }
    /* to a repeated Started; a heartbeat that names what the database has lost is answered so as well */
    :: d_step { HEARS(t) && (hold[t] == SUPERVISED || (hold[t] == TAKEN && row[t] == VANISHED)) && !LIVE(t) ->
        answer[t] = 1 }
    :: d_step { missing[t] -> gone_at_its_agent(t) }
#ifndef RENEW_UNACKNOWLEDGED
    /* give_up: it was refused */
    :: d_step { row[t] == LEASED && !resumed[t] && mine[agent[t]] && !sent[t] && hold[t] == NOTHING -> gone(t) }
#endif
    /* give_up: it was not acknowledged in time. The agent is told to drop it. */
#ifdef GIVE_UP_ANYWAY
    :: d_step { LIVE(t) && !resumed[t] && FAULT ->
        assert(row[t] == LEASED);  /* what has begun goes on */
#else
    :: d_step { row[t] == LEASED && !resumed[t] && FAULT ->
#endif
        fault_happens;
        if
        :: mine[agent[t]] -> answer[t] = 1
        :: else
        fi;
        gone(t) }
#ifndef AT_MOST_ONCE
    /* A standby without the newest claim takes over: its id is given out again, with another token. */
    :: d_step { t == claims - 1 && LIVE(t) && !failed_over && FAULT ->
        fault_happens; failed_over = 1;
        row[t] = VANISHED; resumed[t] = 0; missing[t] = 0;
        queued[job[t]] = 1 }
#else
    /* --- a deployment: the permit's answer may be lost; a request may come late, also that of a dead supervisor */
    :: d_step { said[t] >= 1 && PERMITTABLE(t, nonce[t]) && (permit[t] != nonce[t] || IS_ASKING(t)) ->
        permit[t] = nonce[t];
        permitted[t] = IS_ASKING(t) }
    :: d_step { nonce[t] == 2 && !permit[t] && PERMITTABLE(t, 1) -> permit[t] = 1 }
    :: d_step { AWAKE(agent[t]) && hold[t] == SUPERVISED && sandbox[t] == IDLE && MAY_BEGIN(t) ->
        sandbox[t] = WORKS;
        begun[job[t]]++;
        assert(begun[job[t]] <= 1 + asked[job[t]]);  /* begun at most once, unless a person asked again */
        assert(SUM(WORKING, 0) == 1);                /* and never beside itself */
        assert(row[t] == RUNNING) }                  /* under a lease that lives */
#ifndef NO_DEADLINE
    :: d_step { LATE(t, 0) -> sandbox_gone(t) }
#endif
    :: d_step { sandbox[t] && FAULT -> fault_happens; sandbox_gone(t) }  /* the supervisor dies, and the sandbox with it */
    :: d_step { hold[t] == SUPERVISED && connection[agent[t]] == OFF && nonce[t] == 1 && FAULT ->
        fault_happens; hold[t] = TAKEN; sandbox_gone(t) }  /* a power cut after the disk was full: that was not written */
    :: d_step { HELD(t) && connection[agent[t]] == OFF && FAULT ->
        fault_happens; hold[t] = NOTHING }  /* its disk is gone, and its sandbox is not */
    :: d_step { orphan[t] && out_of_contact[t] >= LONG_LEASE -> gone(t) }
#endif
    od
}

#ifdef AT_MOST_ONCE
inline forget_contact() {
    for (i : 0 .. ATTEMPTS - 1) {
        if
        :: row[i] == LOST -> permit[i] = 0; out_of_contact[i] = 0
        :: else
        fi
    }
    i = 0
}

proctype Person() {
    do
    :: d_step { blocked[0] && !asked[0] && !ANY(MAY_STILL_RUN, 0) ->
        asked[0]++; blocked[0] = 0; queued[0] = 1; forget_contact() }
    od
}

/* All clocks go on together but for the margin; the supervisor's is that of the boot, which a suspended machine keeps.
 * No tick passes a supervisor that is due, unless its machine stands still. */
proctype Clock() {
    do
    :: d_step { MAY_TICK ->
        for (i : 0 .. ATTEMPTS - 1) {
            if
            :: sandbox[i] && since_beat[i] < DEADLINE -> since_beat[i]++
            :: else
            fi;
            if
            :: COUNTS_CONTACT(i) && out_of_contact[i] < LONG_LEASE -> out_of_contact[i]++
            :: else
            fi
        }
        for (i : 0 .. AGENTS - 1) {
            if
            :: beat[i] && connection[i] == ON && beat_age[i] < DEADLINE -> beat_age[i]++
            :: else
            fi
        }
        i = 0 }
    od
}
#endif

/* ---------------------------------------------------------------- what breaks */

proctype Chaos(byte a) {
    do
    :: d_step { connection[a] != OFF && FAULT -> fault_happens; cut(a) }
#ifdef LIVENESS
    :: d_step { !down[a] && FAULT -> fault_happens; down[a] = 1; cut(a) }
    :: d_step { down[a] -> down[a] = 0 }
#endif
#ifdef AT_MOST_ONCE
    :: d_step { !frozen[a] && ANY(HAS_SANDBOX, a) && FAULT -> fault_happens; frozen[a] = 1 }  /* else: it does nothing */
#endif
#ifdef LIVENESS
    :: d_step { faults > 0 -> faults = 0 }  /* for good */
    :: break
#endif
    od
}

init {
    atomic {
        queued[0] = 1;
#if JOBS > 1
        queued[1] = 1;
#endif
        run Dispatcher();
        run Session(0); run Session(1);
        run Heartbeats(0); run Heartbeats(1);
        run Reaper(0); run Reaper(1);
        run Agent(0); run Agent(1);
        run Attempt(0); run Attempt(1);
#if ATTEMPTS > 2
        run Attempt(2);
#endif
#if ATTEMPTS > 3
        run Attempt(3);
#endif
#ifdef NO_ROW_LOCK
        run Dispatcher();
#endif
#ifdef AT_MOST_ONCE
        run Person(); run Clock();
#endif
        run Chaos(0); run Chaos(1)
    }
}

#ifdef LIVENESS
ltl in_the_end { [] (queued[0] -> <> (accepted[0] || blocked[0])) }
#endif
