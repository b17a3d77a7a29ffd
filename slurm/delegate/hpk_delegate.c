/*
 * A SPANK plugin that hands each task's cgroup (version 2) to the job's user, so that programs in the job can give
 * parts of it to their own children, as HPK does for pods' limits. What Slurm allows the job is set on the cgroups
 * above the task's, which stay root's: nobody gets more by this.
 *
 *   gcc -Wall -shared -fPIC -o hpk_delegate.so hpk_delegate.c       (headers: slurm-devel, libslurm-dev)
 *   plugstack.conf: optional /usr/local/lib/slurm/hpk_delegate.so
 *
 * It needs Slurm 25.05 and a kernel with cgroup.kill (5.14): before, Slurm's SIGKILL looked for processes in the
 * task's own cgroup alone, and a job whose processes are below it would have outlived scancel.
 *
 * Only what the kernel lists in /sys/kernel/cgroup/delegate is handed over. At the step's end the cgroups that the
 * user made below the task's are removed, which Slurm would leave, and its own above them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if SLURM_VERSION_NUMBER < SLURM_VERSION_NUM(25, 5, 0)
#error "Slurm before 25.05 does not kill what is in cgroups below a task's"
#endif

SPANK_PLUGIN(hpk_delegate, 1);

#define MOUNT "/sys/fs/cgroup"
#define LISTED "/sys/kernel/cgroup/delegate"

/* How far a user may divide a task's cgroup: what root walks at the step's end must have an end. */
#define DEPTH "16"
#define DESCENDANTS "4096"

/* What encloses the tasks' cgroups; slurmstepd, in which this runs, has the tasks of one step. */
static char tasks[PATH_MAX];

/* The cgroup of `pid`, of version 2, and only one of a Slurm task. */
static int find_cgroup(pid_t pid, char *path, size_t size)
{
	char name[64], line[PATH_MAX];
	int found = -1;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%ld/cgroup", (long) pid);
	if (!(file = fopen(name, "r")))
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "0::", 3) && strstr(line, "/step_") && strstr(line, "/user/task_") &&
		    snprintf(path, size, MOUNT "%s", line + 3) < (int) size)
			found = 0;
	}
	fclose(file);
	return found;
}

/* Writes a file of the cgroup `dir` that stays root's. */
static int set(int dir, const char *name, const char *value)
{
	size_t length = strlen(value);
	int file = openat(dir, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC), done;

	if (file < 0)
		return -1;
	done = write(file, value, length) == (ssize_t) length ? 0 : -1;
	close(file);
	return done;
}

static int hand_over(const char *path, uid_t user)
{
	char name[NAME_MAX + 2];
	int failed = 0, dir = open(path, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	FILE *list = fopen(LISTED, "r");

	if (dir < 0 || !list || faccessat(dir, "cgroup.kill", F_OK, 0) < 0 ||
	    set(dir, "cgroup.max.depth", DEPTH) < 0 || set(dir, "cgroup.max.descendants", DESCENDANTS) < 0 ||
	    fchown(dir, user, -1) < 0)
		failed = errno;
	while (!failed && fgets(name, sizeof(name), list)) {
		name[strcspn(name, "\n")] = '\0';
		/* Some are of controllers that this cgroup hasn't. */
		if (fchownat(dir, name, user, -1, AT_SYMLINK_NOFOLLOW) < 0 && errno != ENOENT)
			failed = errno;
	}
	if (list)
		fclose(list);
	if (dir >= 0)
		close(dir);
	errno = failed;
	return failed ? -1 : 0;
}

/* Removes the cgroups below the one open as `dir`, which it closes. Those in use refuse to go. */
static void remove_below(int dir)
{
	struct dirent *entry;
	DIR *entries = fdopendir(dir);

	if (!entries) {
		close(dir);
		return;
	}
	while ((entry = readdir(entries))) {
		int child;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		child = openat(dir, entry->d_name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0)
			remove_below(child);
		if (unlinkat(dir, entry->d_name, AT_REMOVEDIR) < 0)
			slurm_debug("hpk_delegate: %s below %s stays: %m", entry->d_name, tasks);
	}
	closedir(entries);
}

/* As root, when the task is in its cgroup and has not begun. */
int slurm_spank_task_post_fork(spank_t spank, int argc, char **argv)
{
	char path[PATH_MAX];
	pid_t pid;
	uid_t user;

	if (spank_get_item(spank, S_TASK_PID, &pid) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_UID, &user) != ESPANK_SUCCESS || find_cgroup(pid, path, sizeof(path)) < 0)
		return 0;
	if (hand_over(path, user) < 0)
		slurm_error("hpk_delegate: %s can't be handed to user %u: %m", path, (unsigned) user);
	*strrchr(path, '/') = '\0';
	strcpy(tasks, path);
	return 0;
}

/* As root, when all processes of the step have ended. */
int slurm_spank_exit(spank_t spank, int argc, char **argv)
{
	int dir, level;

	if (!tasks[0])
		return 0;
	dir = open(tasks, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir >= 0)
		remove_below(dir);
	/* Where Slurm tried before this: the user's, the step's and the job's. */
	for (level = 0; level < 3 && rmdir(tasks) == 0; level++)
		*strrchr(tasks, '/') = '\0';
	return 0;
}
